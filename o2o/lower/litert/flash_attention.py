"""Flash attention in TFLite builtins: scores exist a block at a time, and softmax goes along with them.

A block of queries walks over the blocks of keys in a WHILE that ends at the last key that one of them sees,
so nothing is computed that the causal mask would empty, wherever in the cache the queries stand. Softmax is
online (Milakov and Gimelshein, 2018; Dao et al., FlashAttention, 2022): carried along are the largest score
so far, the sum of exponentials and the sum of values, the latter two in terms of the first. All layers share
the two subgraphs of the loop, in which XNNPACK computes.

Dimensions as in `o2o.lower.litert.sdpa`; R = G * q_block rows of one block, C = kv_block columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from o2o.lower.litert.sdpa import FAR, dot_product_attention, hiding, swap_heads
from o2o.model import DOMAIN, Model, shape_of
from o2o.operators.causal_attention import Blocks
from o2o.rewriting.builder import Builder

HEADS = 8  # query heads at a time, but always all that share keys
_TAG = "flash"  # under which the subgraphs of a loop remember what they are for


def flash_attention(
    model: Model,
    op: Builder,
    q: ir.Value,
    k: ir.Value,
    v: ir.Value,
    scale: float,
    position: ir.Value | None,
    blocks: Blocks,
) -> ir.Value:
    """As the causal `dot_product_attention`, [1, T, N, H]; subgraphs are added to `model`."""
    (_, N, T, H), (_, K, S, _) = shape_of(q), shape_of(k)
    if blocks.q >= T and blocks.kv >= S:
        return dot_product_attention(op, q, k, v, scale, position)
    if position is None:
        position = op.constant([0], "pos", np.int32)
    factor = op.constant(scale, "scale", np.float32)
    G = N // K
    together = max(1, HEADS // G)
    # What the queries see is written over this, where it lies: LiteRT does so for what nothing else reads.
    result = op.transpose(q, (0, 2, 1, 3), name="result")
    none = op.constant([0], "none", np.int32)

    def part(x: ir.Value, head: int, token: ir.Value, heads: int, tokens: int, name: str) -> ir.Value:
        """[1, heads, tokens, H] of `x` from this head and token on."""
        ends = [op.constant(numbers, "corner", np.int32) for numbers in ([0, head], [0])]
        corner = op.node("CONCATENATION", [ends[0], token, ends[1]], [4], name="corner", axis=0)
        size = op.constant([1, heads, tokens, H], "size", np.int32)
        return op.node("SLICE", [x, corner, size], [1, heads, tokens, H], name=name)

    offset = none
    for head in range(0, K, together):
        heads = min(together, K - head)
        if head:  # also none, but not before the heads before are done
            offset = op.node("SUB", [offset, op.constant([T], "all", np.int32)], [1], name="none")
        keys, values = part(k, head, offset, heads, S, "keys"), part(v, head, offset, heads, S, "values")
        first = position
        for begin in range(0, T, blocks.q):
            count = min(blocks.q, T - begin)
            rows = part(q, head * G, offset, heads * G, count, "queries")
            rows = op.node("MUL", [rows, factor], shape_of(rows), name="scaled")
            rows = op.reshape(rows, [1, heads, G * count, H], name="groups")
            # One block begins where the one before ended: so LiteRT cannot prepare them all beforehand.
            first, y = _walk(model, op, rows, keys, values, first, count, blocks.kv)
            offset = op.node("SUB", [first, position], [1], name="offset")
            y = swap_heads(op, op.reshape(y, [1, heads * G, count, H], name="ungrouped"))
            place = op.constant([0, begin, head * G, 0], "place", np.int32)
            result = op.node("DYNAMIC_UPDATE_SLICE", [result, y, place], [1, T, N, H], name="seen")
    return result


def _walk(
    model: Model,
    op: Builder,
    rows: ir.Value,
    k: ir.Value,
    v: ir.Value,
    first: ir.Value,
    count: int,
    columns: int,
) -> tuple[ir.Value, ir.Value]:
    """Where the queries end, int32 [1], and what they see of `v`, [1, K, R, H].

    rows: [1, K, R, H], `count` queries of each head from `first` [1] on.
    """
    _, K, R, H = shape_of(rows)
    columns = min(columns, shape_of(k)[2])
    start = op.constant([0], "start", np.int32)
    end = op.node("ADD", [first, op.constant([count], "count", np.int32)], [1], name="end")
    highest = op.constant(np.full((1, K, R, 1), -FAR), "lowest", np.float32)
    weight = op.constant(np.zeros((1, K, R, 1)), "nothing", np.float32)
    total = op.node("MUL", [rows, op.constant(0.0, "zero", np.float32)], [1, K, R, H], name="empty")
    state = [start, end, first, rows, k, v, highest, weight, total]
    condition, body = _loop(model, state, count, columns)
    outputs = [
        ir.Value(name=op.fresh(f"walked_{value.name}"), shape=value.shape, type=value.type)
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


_NAMES = ("start", "end", "first", "queries", "keys", "values", "highest", "weight", "total")


def _loop(model: Model, state: Sequence[ir.Value], count: int, columns: int) -> tuple[ir.Graph, ir.Graph]:
    """The condition and the body that walk such a state, made when no loop of `model` has had them yet."""
    key = tuple(shape_of(value) for value in state), count, columns
    found = [graph for graph in model.graphs if graph.meta.get(_TAG) == key]
    if not found:
        number = sum(_TAG in graph.meta for graph in model.graphs) // 2
        for name, fill in (("condition", _condition), ("body", _body)):
            ends = [ir.Value(name=n, shape=s.shape, type=s.type) for n, s in zip(_NAMES, state, strict=True)]
            graph = ir.Graph(ends, [], nodes=[], name=f"flash_{number}_{name}", opset_imports={DOMAIN: 1})
            graph.meta[_TAG] = key
            graph.outputs.extend(fill(Builder(graph), ends, count, columns))
            model.graphs.append(graph)
            found.append(graph)
    condition, body = found
    return condition, body


def _condition(op: Builder, state: Sequence[ir.Value], count: int, columns: int) -> list[ir.Value]:
    """Whether a query is left that sees the key at `start`."""
    start, end, *_ = state
    return [op.node("LESS", [start, end], [1], ir.DataType.BOOL, name="goes_on")]


def _body(op: Builder, state: Sequence[ir.Value], count: int, columns: int) -> list[ir.Value]:
    """The state after the `columns` keys from `start` on, or as many of the last ones as are left."""
    start, end, first, q, k, v, highest, weight, total = state
    (_, K, R, H), (_, _, S, _) = shape_of(q), shape_of(k)
    C = columns
    begin = start
    if S % C:  # the last block goes back, to be as large as the others
        begin = op.node("MINIMUM", [start, op.constant([S - C], "last", np.int32)], [1], name="begin")
    zeros = [op.constant([0] * n, "zeros", np.int32) for n in (2, 1)]
    corner = op.node("CONCATENATION", [zeros[0], begin, zeros[1]], [4], name="corner", axis=0)
    size = op.constant([1, K, C, H], "block", np.int32)
    keys, values = (op.node("SLICE", [x, corner, size], [1, K, C, H]) for x in (k, v))
    scores = op.node(
        "BATCH_MATMUL", [q, keys], [1, K, R, C], name="scores", adjointLhs=False, adjointRhs=True
    )
    hiding = _hiding(op, start, begin, first, count, R, C)
    scores = op.node("ADD", [scores, hiding], [1, K, R, C], name="masked")
    axis = op.constant([3], "axis", np.int32)
    top = op.node("REDUCE_MAX", [scores, axis], [1, K, R, 1], name="top", keepDims=True)
    new = op.node("MAXIMUM", [highest, top], [1, K, R, 1], name="new_highest")
    exps = op.node("EXP", [op.node("SUB", [scores, new], [1, K, R, C])], [1, K, R, C], name="weights")
    shrink = op.node("EXP", [op.node("SUB", [highest, new], [1, K, R, 1])], [1, K, R, 1], name="shrink")
    sums = op.node("SUM", [exps, axis], [1, K, R, 1], name="sums", keepDims=True)
    mixed = op.node(
        "BATCH_MATMUL", [exps, values], [1, K, R, H], name="mixed", adjointLhs=False, adjointRhs=False
    )
    weight = op.node("ADD", [op.node("MUL", [weight, shrink], [1, K, R, 1]), sums], [1, K, R, 1])
    total = op.node("ADD", [op.node("MUL", [total, shrink], [1, K, R, H]), mixed], [1, K, R, H])
    next_ = op.node("ADD", [start, op.constant([C], "step", np.int32)], [1], name="next")
    return [next_, end, first, q, k, v, new, weight, total]


def _hiding(
    op: Builder, start: ir.Value, begin: ir.Value, first: ir.Value, count: int, R: int, C: int
) -> ir.Value:
    """What is added to scores [1, K, R, C] of the keys from `begin` on."""
    queries, keys = np.tile(np.arange(count), R // count)[:, None], np.arange(C)[None]
    ahead = op.node("SUB", [first, begin], [1], name="ahead")
    hidden = hiding(op, op.reshape(ahead, [1, 1]), queries, keys)
    if begin is start:
        return hidden
    seen = op.node("SUB", [begin, start], [1], name="seen")  # less the keys that the block before had, too
    again = hiding(op, op.reshape(seen, [1, 1]), np.zeros((1, 1)), -keys)
    return op.node("ADD", [hidden, again], [R, C], name="hiding")
