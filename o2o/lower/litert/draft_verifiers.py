"""Draft verifiers: signatures that read a few tokens and give the logits of each, for speculative decoding.

    prefill of T0 tokens -- resized (`o2o.rewriting.resize_tokens`) --> T tokens, all logits
                         -- lowered as decode is: attention to all rows at once, without blocks
                         -- a copy for each capacity of decode (`o2o.rewriting.cache_buckets`)

XNNPACK computes each row of a product in the same order, however many rows there are. So the logits of each
token are those of decode, bit for bit, where both have the same operators.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from o2o.contract import role_of
from o2o.lower.litert.added_signatures import add_buckets, rename_taken, tokens_of
from o2o.lower.litert.lowering import lower_to_litert
from o2o.model import Model, Signature
from o2o.rewriting.cache_buckets import most_rows
from o2o.rewriting.graph_copies import copied
from o2o.rewriting.matchers import MatchFailure
from o2o.rewriting.prefill_logits import restore_prefill_logits
from o2o.rewriting.resize_tokens import TokenResizer
from o2o.signatures import buckets_of, find_decode, prefills_of

NAME = "verify"
"""The signatures are `verify_T`, and `verify_T_CAPACITY` for smaller caches."""


def make_draft_verifiers(model: Model, lengths: Iterable[int]) -> Model | None:
    """Make the verifiers of a model, before it is lowered.

    Args:
        model: A Circle or TFLite model with roles attached (`o2o.contract`). It is not changed.
        lengths: The numbers of tokens T.

    Returns:
        A TFLite model with their graphs over the same constants, for `add_draft_verifiers`. None if there is
        no prefill that takes caches, or its other lengths cannot be proven.
    """
    prefill = _prefill_with_logits(model)
    if prefill is None:
        return None
    verifiers = Model(model.format, [])
    try:
        resizer = TokenResizer(prefill)
        for tokens in lengths:
            resizer.add(verifiers, tokens, f"{NAME}_{tokens}")
    except MatchFailure:
        return None
    return lower_to_litert(verifiers, flash=False) if model.format == "circle" else verifiers


def add_draft_verifiers(model: Model, verifiers: Model) -> list[str]:
    """Add verifiers to the lowered model: one for each number of tokens and each capacity of decode.

    Args:
        model: The lowered TFLite model, with its buckets.
        verifiers: What `make_draft_verifiers` returned for it.

    Returns:
        The names of the signatures.
    """
    capacities = [most_rows(bucket) for bucket in buckets_of(model)]
    rename_taken(verifiers.signatures, model)
    for signature in [*verifiers.signatures]:
        fitting = [capacity for capacity in capacities if capacity >= tokens_of(signature)]
        add_buckets(verifiers, signature, model, fitting)
    model.graphs += verifiers.graphs
    model.signatures += verifiers.signatures
    return [signature.name for signature in verifiers.signatures]


def _prefill_with_logits(model: Model) -> Signature | None:
    """The shortest prefill that continues a text, with logits; None for none."""
    decode = find_decode(model)
    prefills = [prefill for prefill in prefills_of(model) if _has(prefill.inputs, "key_cache")]
    if decode is None or not prefills:
        return None
    if (ready := next((one for one in prefills if _has(one.outputs, "logits")), None)) is not None:
        return ready
    graph, copies = copied(prefills[0].graph)
    inputs, outputs = (
        {name: copies[value] for name, value in values.items()}
        for values in (prefills[0].inputs, prefills[0].outputs)
    )
    prefill = Signature(prefills[0].name, graph, inputs, outputs)
    with_decode = Model(model.format, [graph, decode.graph], [prefill, decode])
    return prefill if restore_prefill_logits(with_decode) else None


def _has(values: dict[str, ir.Value], kind: str) -> bool:
    return any((role := role_of(value)) is not None and role.kind == kind for value in values.values())
