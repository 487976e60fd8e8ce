"""Prefill buckets: copies of prefills with KV caches of a smaller capacity.

Attention without blocks computes with all S rows of the caches, filled or not. Blocks take a loop. In a small
bucket a prompt needs neither.

    prefill of T tokens -- lowered: attention to all rows at once, without blocks
                        -- a copy of the smallest capacity from T on (`o2o.rewriting.cache_buckets`)

Rows behind the tokens of a run are undefined, so no prefill sees them. So a bucket that has room for a run
gives the same result. The first tokens of a text are read in buckets, later ones with all rows.
"""

from __future__ import annotations

from collections.abc import Collection

from o2o.contract import Role, role_of
from o2o.lower.litert.added_signatures import add_buckets, rename_taken, tokens_of
from o2o.lower.litert.lowering import lower_to_litert
from o2o.model import Model, Signature
from o2o.rewriting.cache_buckets import most_rows
from o2o.rewriting.dead_code_elimination import remove_dead_constants, remove_dead_nodes
from o2o.rewriting.graph_copies import copied
from o2o.signatures import buckets_of, find_decode, prefills_of


def copy_prefills(model: Model) -> Model | None:
    """Copy the prefills that take KV caches, before the model is lowered.

    Args:
        model: A Circle or TFLite model with roles attached (`o2o.contract`). It is not changed.

    Returns:
        A TFLite model with the copies over the same constants, for `add_prefill_buckets`. None if there is no
        such prefill, or decode has window caches.
    """
    decode = find_decode(model)
    if decode is None or any(role.capacity is not None for role in _roles(decode)):
        return None
    copies = Model(model.format, [])
    for prefill in prefills_of(model):
        if most_rows(prefill):
            graph, values = copied(prefill.graph)
            inputs, outputs = (
                {name: values[value] for name, value in of.items()}
                for of in (prefill.inputs, prefill.outputs)
            )
            copies.graphs.append(graph)
            copies.signatures.append(Signature(prefill.name, graph, inputs, outputs))
    if not copies.signatures:
        return None
    return lower_to_litert(copies, flash=False) if model.format == "circle" else copies


def add_prefill_buckets(model: Model, prefills: Model, largest: int | None = None) -> list[str]:
    """Add a bucket of each prefill to the lowered model: the smallest of decode that holds its T tokens.

    Args:
        model: The lowered TFLite model, with the buckets of decode.
        prefills: What `copy_prefills` returned for it.
        largest: The largest capacity; None for any. Scores of all rows at once take memory, which prefills
            with attention in blocks save.

    Returns:
        The names of the added signatures.
    """
    outputs = {prefill.name: prefill.outputs.keys() for prefill in prefills_of(model)}
    capacities = sorted(rows for rows in map(most_rows, buckets_of(model)) if rows <= (largest or rows))
    whole = [*prefills.signatures]
    for prefill in whole:
        if outputs[prefill.name] <= prefill.outputs.keys():
            _remove_outputs(prefill, outputs[prefill.name])
            fitting = [capacity for capacity in capacities if capacity >= tokens_of(prefill)]
            add_buckets(prefills, prefill, model, fitting[:1])
    added = prefills.signatures[len(whole) :]
    rename_taken(added, model)
    model.graphs += [signature.graph for signature in added]
    model.signatures += added
    return [signature.name for signature in added]


def _roles(signature: Signature) -> list[Role]:
    return [role for value in signature.inputs.values() if (role := role_of(value)) is not None]


def _remove_outputs(signature: Signature, names: Collection[str]) -> None:
    """Remove all outputs but `names`: the model's prefill may have no logits any more (`tuning`)."""
    for name in signature.outputs.keys() - names:
        signature.graph.outputs.remove(signature.outputs.pop(name))
    remove_dead_nodes(signature.graph)
    remove_dead_constants(signature.graph)
