"""Flash attention in TFLite builtins: attention in blocks of queries and keys, with an online softmax.

A block of queries visits the blocks of keys in a WHILE. The loop ends at the last key that one of the queries
sees, so fully masked blocks are never computed. The online softmax (Milakov and Gimelshein, 2018; Dao et al.,
FlashAttention, 2022) carries the largest score so far, the sum of exponentials and the weighted sum of
values. All layers share the two subgraphs of the loop; XNNPACK computes inside them.

Dimensions as in `o2o.lower.litert.sdpa`; R = G * q_block rows of a block, C = kv_block columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import constant_array
from o2o.lower.litert.sdpa import (
    causal_mask,
    rows_of_heads,
    scaled_dot_product_attention,
    scaled_queries,
    soft_capped,
    steps_between,
)
from o2o.model import DOMAIN, Model, shape_of
from o2o.operators.core_attention import CoreAttention, FlashBlockSizes
from o2o.operators.masks import HIDDEN_STEP
from o2o.rewriting.attention.expand_attention import swap_heads
from o2o.rewriting.builder import Builder

HEADS = 8
"""Query heads that are computed together; always all that share their keys."""

_LOOP_KEY = "flash"  # in the meta of a loop's subgraphs: the shapes and block sizes that they are for


def flash_attention(
    model: Model, op: Builder, of: CoreAttention, position: ir.Value | None, blocks: FlashBlockSizes
) -> ir.Value:
    """Build `o2o.attention` without a mask in blocks.

    Args:
        model: Subgraphs of the loop are added to it.
        op: Where to insert the nodes.
        of: Its operands, float32, and its options.
        position: The position of the first query, int32 [1]; None for 0.
        blocks: Queries and keys of a block.

    Returns:
        The attention output [1, T, N, H].
    """
    N, K, T, S, H = of.N, of.K, of.T, of.S, of.H
    if blocks.q >= T and blocks.kv >= S:
        return scaled_dot_product_attention(op, of, position)
    if position is None:
        position = op.constant([0], "pos", np.int32)
    q, k, v = of.q, of.k, of.v
    G = N // K
    heads_at_once = max(1, HEADS // G)
    # The results overwrite this copy of q in place: LiteRT does so for a tensor without other readers.
    result = op.transpose(q, (0, 2, 1, 3), name="result")

    def part(x: ir.Value, head: int, token: ir.Value, heads: int, tokens: int, name: str) -> ir.Value:
        """[1, heads, tokens, H] of `x` from this head and token on."""
        before, after = (op.constant(numbers, "corner", np.int32) for numbers in ([0, head], [0]))
        corner = op.node("CONCATENATION", [before, token, after], [4], name="corner", axis=0)
        size = op.constant([1, heads, tokens, H], "size", np.int32)
        return op.node("SLICE", [x, corner, size], [1, heads, tokens, H], name=name)

    # `offset` is the token at which the next block begins: 0 at first, computed from the block before. That
    # dependency keeps LiteRT from slicing all blocks at once.
    offset = op.constant([0], "zero", np.int32)
    for head in range(0, K, heads_at_once):
        heads = min(heads_at_once, K - head)
        if head:  # 0 again, but not before the heads before are done
            offset = op.node("SUB", [offset, op.constant([T], "all", np.int32)], [1], name="zero")
        keys, values = part(k, head, offset, heads, S, "keys"), part(v, head, offset, heads, S, "values")
        first = position
        for begin in range(0, T, blocks.q):
            count = min(blocks.q, T - begin)
            rows = part(q, head * G, offset, heads * G, count, "queries")
            rows = op.reshape(scaled_queries(op, of, rows), [1, heads, G * count, H], name="groups")
            first, y = _attend_block(model, op, of, head * G, rows, keys, values, first, count, blocks.kv)
            offset = op.node("SUB", [first, position], [1], name="offset")
            y = swap_heads(op, op.reshape(y, [1, heads * G, count, H], name="ungrouped"))
            corner = op.constant([0, begin, head * G, 0], "corner", np.int32)
            result = op.node("DYNAMIC_UPDATE_SLICE", [result, y, corner], [1, T, N, H], name="updated")
    return result


def _rows_of_heads(
    op: Builder, vector: ir.Value | None, first: int, K: int, G: int, T: int, name: str, factor: float = 1.0
) -> ir.Value | None:
    """The numbers of K * G query heads from `first` on, for the rows of their scores: [1, K, G * T, 1]."""
    if vector is None:
        return None
    if (numbers := constant_array(vector)) is not None:
        vector = op.constant(numbers[first : first + K * G], name, np.float32)
    elif shape_of(vector) != (K * G,):
        vector = op.slice(vector, [first], [K * G], name=name)
    return rows_of_heads(op, vector, K, G, T, name, factor)


def _attend_block(
    model: Model,
    op: Builder,
    of: CoreAttention,
    head: int,
    rows: ir.Value,
    k: ir.Value,
    v: ir.Value,
    first: ir.Value,
    count: int,
    columns: int,
) -> tuple[ir.Value, ir.Value]:
    """The position behind the last query, int32 [1], and the attention output [1, K, R, H].

    rows: [1, K, R, H], `count` queries of each head from `head` on; `first`: the position of the first one,
    int32 [1].
    """
    _, K, R, H = shape_of(rows)
    G = R // count
    slopes = _rows_of_heads(op, of.slopes, head, K, G, count, "slopes", -1 / HIDDEN_STEP)
    sinks = _rows_of_heads(op, of.sinks, head, K, G, count, "sinks")
    columns = min(columns, shape_of(k)[2])
    start = op.constant([0], "start", np.int32)
    if of.window:
        oldest = op.node("SUB", [first, op.constant([of.window - 1], "window", np.int32)], [1], name="oldest")
        start = op.node("MAXIMUM", [oldest, start], [1], name="start")
    end = op.node("ADD", [first, op.constant([count], "count", np.int32)], [1], name="end")
    # A sink is a score that was seen before all others, with weight exp(0) = 1 and no value.
    lowest = np.full((1, K, R, 1), -HIDDEN_STEP)
    highest = op.constant(lowest, "lowest", np.float32) if sinks is None else sinks
    weight = op.constant(np.full((1, K, R, 1), float(sinks is not None)), "weight", np.float32)
    total = op.node("MUL", [rows, op.constant(0.0, "zero", np.float32)], [1, K, R, H], name="no_total")
    state = [start, end, first, rows, k, v, highest, weight, total, *([] if slopes is None else [slopes])]
    condition, body = _loop_subgraphs(model, of, state, count, columns)
    outputs = [
        ir.Value(name=op.fresh(f"final_{value.name}"), shape=value.shape, type=value.type)
        for value in condition.inputs
    ]
    op.add(
        ir.Node(
            DOMAIN,
            "WHILE",
            state,
            [ir.AttrGraph("condSubgraphIndex", condition), ir.AttrGraph("bodySubgraphIndex", body)],
            outputs=outputs,
        )
    )
    end, weight, total = outputs[1], outputs[7], outputs[8]
    return end, op.node("DIV", [total, weight], [1, K, R, H], name="mixed")


_STATE_NAMES = ("start", "end", "first", "queries", "keys", "values", "highest", "weight", "total", "slopes")


def _loop_subgraphs(
    model: Model, of: CoreAttention, state: Sequence[ir.Value], count: int, columns: int
) -> tuple[ir.Graph, ir.Graph]:
    """The condition and the body for such a state, shared by loops of equal shapes and blocks."""
    key = tuple(shape_of(value) for value in state), count, columns, of.softcap, of.window
    subgraphs = [graph for graph in model.graphs if graph.meta.get(_LOOP_KEY) == key]
    if not subgraphs:
        number = sum(_LOOP_KEY in graph.meta for graph in model.graphs) // 2
        for name, build in (("condition", _condition), ("body", _body)):
            inputs = [
                ir.Value(name=input_name, shape=value.shape, type=value.type)
                for input_name, value in zip(_STATE_NAMES, state, strict=False)
            ]
            graph = ir.Graph(inputs, [], nodes=[], name=f"flash_{number}_{name}", opset_imports={DOMAIN: 1})
            graph.meta[_LOOP_KEY] = key
            graph.outputs.extend(build(Builder(graph), of, inputs, count, columns))
            model.graphs.append(graph)
            subgraphs.append(graph)
    condition, body = subgraphs
    return condition, body


def _condition(
    op: Builder, of: CoreAttention, state: Sequence[ir.Value], count: int, columns: int
) -> list[ir.Value]:
    """Whether a query sees the key at `start`."""
    start, end, *_ = state
    return [op.node("LESS", [start, end], [1], ir.DataType.BOOL, name="is_visible")]


def _body(
    op: Builder, of: CoreAttention, state: Sequence[ir.Value], count: int, columns: int
) -> list[ir.Value]:
    """The state after the next `columns` keys from `start` on, or after all that remain."""
    start, end, first, q, k, v, highest, weight, total, *slopes = state
    (_, K, R, H), (_, _, S, _) = shape_of(q), shape_of(k)
    C = columns
    begin = start
    if S % C or of.window:  # the last block starts earlier, to be as large as the others
        begin = op.node("MINIMUM", [start, op.constant([S - C], "last", np.int32)], [1], name="begin")
    zeros = [op.constant([0] * n, "zeros", np.int32) for n in (2, 1)]
    corner = op.node("CONCATENATION", [zeros[0], begin, zeros[1]], [4], name="corner", axis=0)
    size = op.constant([1, K, C, H], "block", np.int32)
    keys, values = (op.node("SLICE", [x, corner, size], [1, K, C, H]) for x in (k, v))
    scores = op.node(
        "BATCH_MATMUL", [q, keys], [1, K, R, C], name="scores", adjointLhs=False, adjointRhs=True
    )
    scores = soft_capped(op, of, scores)
    offset = op.reshape(op.node("SUB", [first, begin], [1], name="query_offset"), [1, 1])
    query, key = np.tile(np.arange(count), R // count)[:, None], np.arange(C)[None]
    if slopes:
        ahead = steps_between(op, offset, query, key)
        bias = op.node("MUL", [ahead, slopes[0]], [1, K, R, C], name="bias")
        scores = op.node("ADD", [scores, bias], [1, K, R, C], name="biased")
    mask = causal_mask(op, offset, query, key, of.window)
    if begin is not start:  # keys before `start` are in the block before
        overlap = op.reshape(op.node("SUB", [begin, start], [1], name="overlap"), [1, 1])
        repeated = causal_mask(op, overlap, np.zeros((1, 1)), -key)
        mask = op.node("ADD", [mask, repeated], [R, C], name="mask")
    scores = op.node("ADD", [scores, mask], [1, K, R, C], name="masked")
    axis = op.constant([3], "axis", np.int32)
    top = op.node("REDUCE_MAX", [scores, axis], [1, K, R, 1], name="top", keepDims=True)
    new_highest = op.node("MAXIMUM", [highest, top], [1, K, R, 1], name="new_highest")
    exps = op.node("EXP", [op.node("SUB", [scores, new_highest], [1, K, R, C])], [1, K, R, C], name="weights")
    shrink = op.node(
        "EXP", [op.node("SUB", [highest, new_highest], [1, K, R, 1])], [1, K, R, 1], name="shrink"
    )
    sums = op.node("SUM", [exps, axis], [1, K, R, 1], name="sums", keepDims=True)
    mixed = op.node(
        "BATCH_MATMUL", [exps, values], [1, K, R, H], name="mixed", adjointLhs=False, adjointRhs=False
    )
    weight = op.node("ADD", [op.node("MUL", [weight, shrink], [1, K, R, 1]), sums], [1, K, R, 1])
    total = op.node("ADD", [op.node("MUL", [total, shrink], [1, K, R, H]), mixed], [1, K, R, H])
    next_start = op.node("ADD", [start, op.constant([C], "step", np.int32)], [1], name="next")
    return [next_start, end, first, q, k, v, new_highest, weight, total, *slopes]
