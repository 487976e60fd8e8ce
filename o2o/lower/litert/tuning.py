"""A lowered decoder as LiteRT runs it fastest: caches by head, and decode in several capacities.

[1, S, K, H], AI Edge's layout, has to be transposed before each head's keys can be multiplied, which takes as
long as the multiplication. And decode computes with all of a cache, however short the text is.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence

import onnx_ir as ir

from o2o.contract import role_of
from o2o.model import Model, Signature, shape_of
from o2o.rewriting.axes import skip_reshapes
from o2o.rewriting.cache_buckets import add_cache_buckets, is_provable
from o2o.rewriting.cache_layout import transpose_caches
from o2o.rewriting.dead_code_elimination import remove_dead_constants, remove_dead_nodes
from o2o.rewriting.matchers import MatchFailure, producer_of
from o2o.rewriting.simplify_layout_ops import simplify_layout_ops
from o2o.signatures import buckets_of, capacity_of, find_decode, prefills_of

MULTIPLICATIONS = 12
"""With one weight, in the time that reading it from memory takes: 11 of float32 on two cores, 13 of int8."""
SMALLEST = 256
"""Rows from which capacities double: `bench/decode_attention.py` tells what a step costs in each."""


def doubling(capacity: int) -> list[int]:
    """256, 512, ... below `capacity`, as far as it can be proven that these do."""
    found = []
    rows = SMALLEST
    while rows < capacity and is_provable(rows, capacity):
        found.append(rows)
        rows *= 2
    return found


def tune(model: Model, capacities: Sequence[int] | None = None) -> bool:
    """Change the TFLite model in place, where there is a capacity below that of its caches; whether there is.

    capacities: those of decode besides its own, where they are below it; None for what `doubling` gives.
    Those that the model has already stay, and so does a decode that cannot be proven to do with less.
    """
    decode = find_decode(model)
    own = capacity_of(decode) if decode is not None else 0
    wanted = [rows for rows in (doubling(own) if capacities is None else capacities) if rows < own]
    if decode is None or not wanted:
        return False
    for signature in model.signatures:
        transpose_caches(model, signature.graph, "BNTH")
        simplify_layout_ops(model, signature.graph)
    if not buckets_of(model):
        with contextlib.suppress(MatchFailure):
            add_cache_buckets(model, decode, wanted)
    return True


def leave_logits_to_decode(model: Model) -> bool:
    """Let no prefill of the TFLite model give logits, where that pays; whether it does.

    A prefill makes them for every token, of which only the last one's are wanted; without them decode reads
    the last token of a prompt. That pays where the shortest prefill multiplies more with the head than a
    decode step takes: it reads every weight once, while `MULTIPLICATIONS` are done.
    """
    decode, prefills = find_decode(model), prefills_of(model)
    logits = [_logits(signature) for signature in prefills]
    if decode is None or not logits or None in logits:
        return False
    multiplied = []
    for value in logits:
        assert value is not None
        node = producer_of(skip_reshapes(value), "FULLY_CONNECTED")
        if node is None or node.inputs[1] is None:
            return False
        multiplied.append(math.prod(shape_of(value)) * shape_of(node.inputs[1])[-1])
    if min(multiplied) <= MULTIPLICATIONS * _weights(decode):
        return False
    for signature, value in zip(prefills, logits, strict=True):
        assert value is not None
        signature.outputs = {name: end for name, end in signature.outputs.items() if end is not value}
        signature.graph.outputs.remove(value)
        remove_dead_nodes(signature.graph)
        remove_dead_constants(signature.graph)
    return True


def _logits(signature: Signature) -> ir.Value | None:
    told = ((value, role_of(value)) for value in signature.outputs.values())
    return next((value for value, role in told if role is not None and role.kind == "logits"), None)


def _weights(signature: Signature) -> int:
    """How many numbers are in its matrices."""
    values = signature.graph.initializers.values()
    return sum(math.prod(shape_of(value)) for value in values if len(shape_of(value)) == 2)
