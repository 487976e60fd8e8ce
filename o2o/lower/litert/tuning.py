"""Tuning a lowered decoder for LiteRT: cache layout, decode buckets, and prefills without logits.

AI Edge's cache layout [1, S, K, H] is transposed before each multiplication, which takes as long as the
multiplication itself. And a decode step computes with all S rows of its caches, however short the text is.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import get_args

import onnx_ir as ir

from o2o.contract import Layout, role_of
from o2o.model import Model, Signature, shape_of
from o2o.rewriting.axes import skip_reshapes
from o2o.rewriting.cache_buckets import add_cache_buckets, default_capacities, most_rows
from o2o.rewriting.cache_layout import transpose_caches
from o2o.rewriting.dead_code_elimination import remove_dead_constants, remove_dead_nodes
from o2o.rewriting.matchers import MatchFailure, producer_of
from o2o.rewriting.simplify_layout_ops import simplify_layout_ops
from o2o.signatures import buckets_of, find_decode, prefills_of

MULTIPLICATIONS = 12
"""Multiplications with a weight in the time of reading it: 11 for float32 on two cores, 13 for int8."""


def tune(model: Model, buckets: Sequence[int] | None = None) -> bool:
    """Give a model the faster cache layout and buckets, in place, if a bucket is below its capacity.

    Buckets that the model has stay as they are. A decode signature that cannot be proven to work with fewer
    rows gets no buckets.

    Args:
        model: A TFLite model with roles attached (`o2o.contract`).
        buckets: Capacities to add, ignored where not below decode's own; None for `default_capacities`.

    Returns:
        Whether the model was changed.
    """
    decode = find_decode(model)
    capacity = most_rows(decode) if decode is not None else 0
    capacities = default_capacities(capacity) if buckets is None else buckets
    smaller = [rows for rows in capacities if rows < capacity]
    if decode is None or not smaller or not _has_known_layouts(model):
        return False
    for signature in model.signatures:
        transpose_caches(model, signature.graph, "BNTH")
        simplify_layout_ops(model, signature.graph)
    if not buckets_of(model):
        with contextlib.suppress(MatchFailure):
            add_cache_buckets(model, decode, smaller)
    return True


def _has_known_layouts(model: Model) -> bool:
    """Whether each KV cache has a layout that can be transposed; others stay as they are."""
    values = (value for one in model.signatures for value in (*one.inputs.values(), *one.outputs.values()))
    layouts = {role.layout for value in values if (role := role_of(value)) is not None}
    return layouts <= {None, *get_args(Layout)}


def remove_prefill_logits(model: Model) -> bool:
    """Remove the logits of all prefills, in place, where that makes a prompt faster.

    A prefill computes the logits of T tokens, and only the last ones are used. Without them, decode reads the
    last token of a prompt instead, which reads every weight once. So logits are removed if the LM head of the
    shortest prefill takes more multiplications than `MULTIPLICATIONS` per weight of decode.

    Args:
        model: A TFLite model with roles attached (`o2o.contract`).

    Returns:
        Whether they were removed.
    """
    decode, prefills = find_decode(model), prefills_of(model)
    logits = [_logits(signature) for signature in prefills]
    if decode is None or not logits or None in logits:
        return False
    multiplications = []
    for value in logits:
        assert value is not None
        node = producer_of(skip_reshapes(value), "FULLY_CONNECTED")
        if node is None or node.inputs[1] is None:
            return False
        multiplications.append(math.prod(shape_of(value)) * shape_of(node.inputs[1])[-1])
    if min(multiplications) <= MULTIPLICATIONS * _num_weights(decode):
        return False
    for signature, value in zip(prefills, logits, strict=True):
        assert value is not None
        signature.outputs = {
            name: output for name, output in signature.outputs.items() if output is not value
        }
        signature.graph.outputs.remove(value)
        remove_dead_nodes(signature.graph)
        remove_dead_constants(signature.graph)
    return True


def _logits(signature: Signature) -> ir.Value | None:
    roles = ((value, role_of(value)) for value in signature.outputs.values())
    return next((value for value, role in roles if role is not None and role.kind == "logits"), None)


def _num_weights(signature: Signature) -> int:
    """The number of elements of all matrices."""
    values = signature.graph.initializers.values()
    return sum(math.prod(shape_of(value)) for value in values if len(shape_of(value)) == 2)
