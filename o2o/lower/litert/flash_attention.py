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

from o2o.lower.litert.sdpa import scaled_dot_product_attention, shifted_causal_mask, swap_heads
from o2o.model import DOMAIN, Model, shape_of
from o2o.operators.core_attention import FlashBlockSizes
from o2o.operators.masks import HIDDEN_STEP
from o2o.rewriting.builder import Builder

HEADS = 8
"""Query heads that are computed together; always all that share their keys."""

_LOOP_KEY = "flash"  # in the meta of a loop's subgraphs: the shapes and block sizes that they are for


def flash_attention(
    model: Model,
    op: Builder,
    q: ir.Value,
    k: ir.Value,
    v: ir.Value,
    scale: float,
    position: ir.Value | None,
    blocks: FlashBlockSizes,
) -> ir.Value:
    """Build causal attention in blocks: what `scaled_dot_product_attention` computes without a mask.

    Args:
        model: Subgraphs of the loop are added to it.
        op: Where to insert the nodes.
        q: Queries [1, N, T, H], float32.
        k: Keys [1, K, S, H], float32.
        v: Values [1, K, S, H], float32.
        scale: Factor of the scores.
        position: The position of the first query, int32 [1]; None for 0.
        blocks: Queries and keys of a block.

    Returns:
        The attention output [1, T, N, H].
    """
    (_, N, T, H), (_, K, S, _) = shape_of(q), shape_of(k)
    if blocks.q >= T and blocks.kv >= S:
        return scaled_dot_product_attention(op, q, k, v, scale, position)
    if position is None:
        position = op.constant([0], "pos", np.int32)
    factor = op.constant(scale, "scale", np.float32)
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
            rows = op.node("MUL", [rows, factor], shape_of(rows), name="scaled")
            rows = op.reshape(rows, [1, heads, G * count, H], name="groups")
            first, y = _attend_block(model, op, rows, keys, values, first, count, blocks.kv)
            offset = op.node("SUB", [first, position], [1], name="offset")
            y = swap_heads(op, op.reshape(y, [1, heads * G, count, H], name="ungrouped"))
            corner = op.constant([0, begin, head * G, 0], "corner", np.int32)
            result = op.node("DYNAMIC_UPDATE_SLICE", [result, y, corner], [1, T, N, H], name="updated")
    return result


def _attend_block(
    model: Model,
    op: Builder,
    rows: ir.Value,
    k: ir.Value,
    v: ir.Value,
    first: ir.Value,
    count: int,
    columns: int,
) -> tuple[ir.Value, ir.Value]:
    """The position behind the last query, int32 [1], and the attention output [1, K, R, H].

    rows: [1, K, R, H], `count` queries of each head; `first`: the position of the first one, int32 [1].
    """
    _, K, R, H = shape_of(rows)
    columns = min(columns, shape_of(k)[2])
    start = op.constant([0], "start", np.int32)
    end = op.node("ADD", [first, op.constant([count], "count", np.int32)], [1], name="end")
    highest = op.constant(np.full((1, K, R, 1), -HIDDEN_STEP), "lowest", np.float32)
    weight = op.constant(np.zeros((1, K, R, 1)), "no_weight", np.float32)
    total = op.node("MUL", [rows, op.constant(0.0, "zero", np.float32)], [1, K, R, H], name="no_total")
    state = [start, end, first, rows, k, v, highest, weight, total]
    condition, body = _loop_subgraphs(model, state, count, columns)
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
    _, end, *_, weight, total = outputs
    return end, op.node("DIV", [total, weight], [1, K, R, H], name="mixed")


_STATE_NAMES = ("start", "end", "first", "queries", "keys", "values", "highest", "weight", "total")


def _loop_subgraphs(
    model: Model, state: Sequence[ir.Value], count: int, columns: int
) -> tuple[ir.Graph, ir.Graph]:
    """The condition and the body for such a state, shared by loops of equal shapes and blocks."""
    key = tuple(shape_of(value) for value in state), count, columns
    subgraphs = [graph for graph in model.graphs if graph.meta.get(_LOOP_KEY) == key]
    if not subgraphs:
        number = sum(_LOOP_KEY in graph.meta for graph in model.graphs) // 2
        for name, build in (("condition", _condition), ("body", _body)):
            inputs = [
                ir.Value(name=input_name, shape=value.shape, type=value.type)
                for input_name, value in zip(_STATE_NAMES, state, strict=True)
            ]
            graph = ir.Graph(inputs, [], nodes=[], name=f"flash_{number}_{name}", opset_imports={DOMAIN: 1})
            graph.meta[_LOOP_KEY] = key
            graph.outputs.extend(build(Builder(graph), inputs, count, columns))
            model.graphs.append(graph)
            subgraphs.append(graph)
    condition, body = subgraphs
    return condition, body


def _condition(op: Builder, state: Sequence[ir.Value], count: int, columns: int) -> list[ir.Value]:
    """Whether a query sees the key at `start`."""
    start, end, *_ = state
    return [op.node("LESS", [start, end], [1], ir.DataType.BOOL, name="is_visible")]


def _body(op: Builder, state: Sequence[ir.Value], count: int, columns: int) -> list[ir.Value]:
    """The state after the next `columns` keys from `start` on, or after all that remain."""
    start, end, first, q, k, v, highest, weight, total = state
    (_, K, R, H), (_, _, S, _) = shape_of(q), shape_of(k)
    C = columns
    begin = start
    if S % C:  # the last block starts earlier, to be as large as the others
        begin = op.node("MINIMUM", [start, op.constant([S - C], "last", np.int32)], [1], name="begin")
    zeros = [op.constant([0] * n, "zeros", np.int32) for n in (2, 1)]
    corner = op.node("CONCATENATION", [zeros[0], begin, zeros[1]], [4], name="corner", axis=0)
    size = op.constant([1, K, C, H], "block", np.int32)
    keys, values = (op.node("SLICE", [x, corner, size], [1, K, C, H]) for x in (k, v))
    scores = op.node(
        "BATCH_MATMUL", [q, keys], [1, K, R, C], name="scores", adjointLhs=False, adjointRhs=True
    )
    mask = _block_mask(op, start, begin, first, count, R, C)
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
    return [next_start, end, first, q, k, v, new_highest, weight, total]


def _block_mask(
    op: Builder, start: ir.Value, begin: ir.Value, first: ir.Value, count: int, R: int, C: int
) -> ir.Value:
    """The mask [R, C] of the keys from `begin` on; keys before `start` are hidden too."""
    queries, keys = np.tile(np.arange(count), R // count)[:, None], np.arange(C)[None]
    offset = op.node("SUB", [first, begin], [1], name="query_offset")
    causal = shifted_causal_mask(op, op.reshape(offset, [1, 1]), queries, keys)
    if begin is start:
        return causal
    overlap = op.node("SUB", [begin, start], [1], name="overlap")
    repeated = shifted_causal_mask(op, op.reshape(overlap, [1, 1]), np.zeros((1, 1)), -keys)
    return op.node("ADD", [causal, repeated], [R, C], name="mask")
