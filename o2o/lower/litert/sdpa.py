"""The core of attention in TFLite builtins, all scores at once.

T queries of N heads attend to S keys and values of K heads, in groups of G = N / K query heads. The query
heads of a group are rows of one matrix, so keys and values are never repeated. R = G * T rows.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import constant_array
from o2o.model import shape_of
from o2o.operators.core_attention import CoreAttention
from o2o.operators.masks import HIDDEN_SCORE, HIDDEN_STEP
from o2o.rewriting.attention.expand_attention import swap_heads
from o2o.rewriting.builder import Builder


def scaled_dot_product_attention(op: Builder, of: CoreAttention, position: ir.Value | None) -> ir.Value:
    """Build `o2o.attention`.

    Args:
        op: Where to insert the nodes.
        of: Its operands, float32, and its options; blocks are ignored.
        position: The position of the first query, int32 [1]; None for 0.

    Returns:
        The attention output [1, T, N, H].
    """
    N, K, T, S, H = of.N, of.K, of.T, of.S, of.H
    G = N // K
    R = G * T
    q = op.reshape(scaled_queries(op, of, of.q), [1, K, R, H], name="groups")
    scores = op.node("BATCH_MATMUL", [q, of.k], [1, K, R, S], name="scores", adjointRhs=True)
    scores = soft_capped(op, of, scores)
    distance = None if position is None else op.reshape(position, [1, 1], name="position")
    query, key = np.tile(np.arange(T), G if T > 1 else 1)[:, None], np.arange(S)[None, :]
    if of.slopes is not None:
        slopes = rows_of_heads(op, of.slopes, K, G, T, "slopes", factor=-1 / HIDDEN_STEP)
        ahead = steps_between(op, distance, query, key)
        bias = op.node("MUL", [ahead, slopes], [1, K, R, S], name="bias")
        scores = op.node("ADD", [scores, bias], [1, K, R, S], name="biased")
    if of.mask is not None:
        added = _mask_of_rows(op, of.mask, K, G, T)
    elif distance is None:
        is_visible = (key <= query) & ((key > query - of.window) if of.window else True)
        added = op.constant(np.where(is_visible, 0, HIDDEN_SCORE).astype(np.float32), "causal")
    else:
        added = causal_mask(op, distance, query, key, of.window)
    scores = op.node("ADD", [scores, added], [1, K, R, S], name="masked")
    columns = S
    if of.sinks is not None:
        sinks = rows_of_heads(op, of.sinks, K, G, T, "sinks")
        columns = S + 1
        scores = op.node("CONCATENATION", [scores, sinks], [1, K, R, columns], name="with_sinks", axis=3)
    weights = op.node("SOFTMAX", [scores], [1, K, R, columns], name="weights", beta=1.0)
    if of.sinks is not None:
        weights = op.slice(weights, [0] * 4, [1, K, R, S], name="weights_of_keys")
    y = op.node("BATCH_MATMUL", [weights, of.v], [1, K, R, H], name="mixed")
    return swap_heads(op, op.reshape(y, [1, N, T, H], name="ungrouped"))


def last_keys(op: Builder, of: CoreAttention, position: ir.Value) -> tuple[CoreAttention, ir.Value]:
    """Take the keys of the window only, for one query: `window` rows of the S that the caches have.

    Args:
        op: Where to insert the nodes.
        of: An attention of one token with a window, without a mask operand.
        position: The position of the query, int32 [1].

    Returns:
        The same attention over `window` keys, without a window, and the query's position among these.
    """
    window, K, H = of.window, of.K, of.H
    oldest = op.node("SUB", [position, op.constant([window - 1], "window", np.int32)], [1], name="oldest")
    first = op.node("MAXIMUM", [oldest, op.constant([0], "zero", np.int32)], [1], name="first")
    before, after = (op.constant([0] * count, "zeros", np.int32) for count in (2, 1))
    begin = op.node("CONCATENATION", [before, first, after], [4], name="begin", axis=0)
    size = op.constant([1, K, window, H], "size", np.int32)
    k, v = (
        op.node("SLICE", [x, begin, size], [1, K, window, H], name=name)
        for x, name in ((of.k, "last_keys"), (of.v, "last_values"))
    )
    return replace(of, k=k, v=v, window=0), op.node("SUB", [position, first], [1], name="place")


def scaled_queries(op: Builder, of: CoreAttention, q: ir.Value) -> ir.Value:
    """Scale queries, so that no pass over the scores is needed for it.

    Args:
        op: Where to insert the node.
        of: The attention.
        q: Queries of any shape.

    Returns:
        q times the scale; divided by the soft-cap, if there is one.
    """
    scale = of.scale / of.softcap if of.softcap else of.scale
    if scale == 1:
        return q
    return op.node("MUL", [q, op.constant(scale, "scale", np.float32)], shape_of(q), name="scaled")


def soft_capped(op: Builder, of: CoreAttention, scores: ir.Value) -> ir.Value:
    """Cap the scores of `scaled_queries`.

    Args:
        op: Where to insert the nodes.
        of: The attention.
        scores: Scores of any shape.

    Returns:
        softcap * tanh(scores), or the scores without a soft-cap.
    """
    if not of.softcap:
        return scores
    bounded = op.node("TANH", [scores], shape_of(scores), name="bounded")
    cap = op.constant(of.softcap, "softcap", np.float32)
    return op.node("MUL", [bounded, cap], shape_of(scores), name="capped")


def rows_of_heads(
    op: Builder, vector: ir.Value, K: int, G: int, T: int, name: str, factor: float = 1.0
) -> ir.Value:
    """Give each row of scores the number of its head.

    Args:
        op: Where to insert the nodes.
        vector: One number for each query head, [K * G].
        K: Key heads.
        G: Query heads of a group.
        T: Queries of a head.
        name: The name of the result.
        factor: A factor of the numbers.

    Returns:
        [1, K, G * T, 1].
    """
    if (numbers := constant_array(vector)) is not None:
        rows = np.repeat(numbers.reshape(1, K, G, 1), T, 3).reshape(1, K, G * T, 1)
        return op.constant(rows * np.float32(factor), name, np.float32)
    x = op.reshape(vector, [1, K, G, 1], name=name)
    if factor != 1:
        x = op.node("MUL", [x, op.constant(factor, "factor", np.float32)], shape_of(x), name=name)
    if T > 1:
        shape = op.constant([1, K, G, T], f"{name}_shape", np.int32)
        x = op.node("BROADCAST_TO", [x, shape], [1, K, G, T], name=name)
    return op.reshape(x, [1, K, G * T, 1], name=name)


def steps_between(op: Builder, offset: ir.Value | None, query: np.ndarray, key: np.ndarray) -> ir.Value:
    """Build HIDDEN_STEP * (query + offset - key).

    Args:
        op: Where to insert the nodes.
        offset: Added to each query's position, int32 [1, 1]; None for 0.
        query: Positions of the R queries, [R, 1].
        key: Positions of the C keys, [1, C].

    Returns:
        float32 [R, C].
    """
    if offset is None:
        return op.constant(HIDDEN_STEP * (query - key), "distance", np.float32)
    offset = op.node("CAST", [offset], [1, 1], ir.DataType.FLOAT)
    offset = op.node("MUL", [offset, op.constant(HIDDEN_STEP, "step", np.float32)], [1, 1])
    queries = op.constant(HIDDEN_STEP * query, "query_steps", np.float32)
    keys = op.constant(-HIDDEN_STEP * key, "key_steps", np.float32)
    rows = op.node("ADD", [queries, offset], query.shape)
    return op.node("ADD", [rows, keys], [query.shape[0], key.shape[1]])


def causal_mask(
    op: Builder, offset: ir.Value, query: np.ndarray, key: np.ndarray, window: int = 0
) -> ir.Value:
    """Build the additive causal mask of queries that start at a computed position.

    With d = HIDDEN_STEP * (query + offset - key), the mask is min(0, d), and with a window min(0, d,
    HIDDEN_STEP * (window - 1) - d). This is arithmetic rather than a comparison and a SELECT, because XNNPACK
    computes it too and keeps no mask for later.

    Args:
        op: Where to insert the nodes.
        offset: Added to each query's position, int32 [1, 1].
        query: Positions of the R queries, [R, 1].
        key: Positions of the C keys, [1, C].
        window: The number of keys that a query sees at most; 0 for all.

    Returns:
        float32 [R, C]: 0 for visible keys, else a hidden score (`o2o.operators.masks`).
    """
    distance = steps_between(op, offset, query, key)
    shape = shape_of(distance)
    if window:
        last = op.constant(HIDDEN_STEP * (window - 1), "window", np.float32)
        behind = op.node("SUB", [last, distance], shape, name="behind")
        distance = op.node("MINIMUM", [distance, behind], shape, name="nearest")
    return op.node("MINIMUM", [distance, op.constant(0.0, "zero", np.float32)], shape, name="mask")


def _mask_of_rows(op: Builder, mask: ir.Value, K: int, G: int, T: int) -> ir.Value:
    """A mask that broadcasts to [1, N, T, S], for the rows of G heads each: it broadcasts to [1, K, R, S]."""
    heads, rows, columns = (1, 1, 1, *shape_of(mask))[-3:]
    if heads == 1:
        mask = op.reshape(mask, [1, 1, rows, columns], name="mask")
        if G == 1 or rows == 1:
            return mask
        return op.node("CONCATENATION", [mask] * G, [1, 1, G * T, columns], name="mask_groups", axis=2)
    if rows < T:
        mask = op.reshape(mask, [1, K * G, 1, columns], name="mask")
        mask = op.node("CONCATENATION", [mask] * T, [1, K * G, T, columns], name="mask_rows", axis=2)
    return op.reshape(mask, [1, K, G * T, columns], name="mask")
