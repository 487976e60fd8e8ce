"""Scaled dot-product attention in TFLite builtins, causal or with a mask.

T queries of N heads attend to S keys and values of K heads, in groups of G = N / K query heads. The query
heads of a group are rows of one matrix, so keys and values are never repeated.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from o2o.model import shape_of
from o2o.operators.masks import HIDDEN_SCORE, HIDDEN_STEP
from o2o.rewriting.builder import Builder


def scaled_dot_product_attention(
    op: Builder,
    q: ir.Value,
    k: ir.Value,
    v: ir.Value,
    scale: float,
    position: ir.Value | None = None,
    mask: ir.Value | None = None,
) -> ir.Value:
    """Build softmax(scale q k' + mask) v.

    Args:
        op: Where to insert the nodes.
        q: Queries [1, N, T, H], float32.
        k: Keys [1, K, S, H], float32.
        v: Values [1, K, S, H], float32.
        scale: Factor of the scores.
        position: The position of the first query, int32 [1]; None for 0. Used without a mask.
        mask: Added to the scores of each head, [..., T, S]. None for the causal mask: query t sees the keys
            0 to position + t.

    Returns:
        The attention output [1, T, N, H].
    """
    (_, N, T, H), (_, K, S, _) = shape_of(q), shape_of(k)
    G = N // K
    q = op.node("MUL", [q, op.constant(scale, "scale", np.float32)], [1, N, T, H], name="scaled")
    q = op.reshape(q, [1, K, G * T, H], name="groups")
    scores = op.node(
        "BATCH_MATMUL", [q, k], [1, K, G * T, S], name="scores", adjointLhs=False, adjointRhs=True
    )
    added = _causal_mask(op, position, G, T, S) if mask is None else _mask_of_group(op, mask, G, T)
    scores = op.node("ADD", [scores, added], [1, K, G * T, S], name="masked")
    weights = op.node("SOFTMAX", [scores], [1, K, G * T, S], name="weights", beta=1.0)
    y = op.node(
        "BATCH_MATMUL", [weights, v], [1, K, G * T, H], name="mixed", adjointLhs=False, adjointRhs=False
    )
    return swap_heads(op, op.reshape(y, [1, N, T, H], name="ungrouped"))


def swap_heads(op: Builder, x: ir.Value) -> ir.Value:
    """Swap the head axis and the token axis.

    Args:
        op: Where to insert the node.
        x: [1, a, b, H].

    Returns:
        [1, b, a, H]: a RESHAPE of x where a or b is 1, else a TRANSPOSE.
    """
    one, a, b, H = shape_of(x)
    if 1 in (a, b):
        return op.reshape(x, [one, b, a, H], name="swapped")
    return op.transpose(x, (0, 2, 1, 3), name="swapped")


def _causal_mask(op: Builder, position: ir.Value | None, G: int, T: int, S: int) -> ir.Value:
    """The causal mask [G*T, S], or [1, S] for one query, of the scores [1, K, G*T, S]."""
    query = np.tile(np.arange(T), G if T > 1 else 1)[:, None]  # [G*T, 1], or [1, 1]
    key = np.arange(S)[None, :]
    if position is None:
        return op.constant(np.where(key <= query, 0, HIDDEN_SCORE).astype(np.float32), "causal")
    return shifted_causal_mask(op, op.reshape(position, [1, 1], name="position"), query, key)


def shifted_causal_mask(op: Builder, offset: ir.Value, query: np.ndarray, key: np.ndarray) -> ir.Value:
    """Build the additive causal mask of queries that start at a computed position.

    The mask is min(0, HIDDEN_STEP * (query + offset - key)). This is arithmetic rather than a comparison and
    a SELECT, because XNNPACK computes it too and keeps no mask for later.

    Args:
        op: Where to insert the nodes.
        offset: Added to each query's position, int32 [1, 1].
        query: Positions of the R queries, [R, 1].
        key: Positions of the C keys, [1, C].

    Returns:
        float32 [R, C]: 0 for keys up to the query's own, else a hidden score (`o2o.operators.masks`).
    """
    offset = op.node("CAST", [offset], [1, 1], ir.DataType.FLOAT)
    offset = op.node("MUL", [offset, op.constant(HIDDEN_STEP, "step", np.float32)], [1, 1])
    queries = op.constant(HIDDEN_STEP * query, "query_steps", np.float32)
    keys = op.constant(-HIDDEN_STEP * key, "key_steps", np.float32)
    rows = op.node("ADD", [queries, offset], query.shape)
    shape = [query.shape[0], key.shape[1]]
    distance = op.node("ADD", [rows, keys], shape)
    return op.node("MINIMUM", [distance, op.constant(0.0, "zero", np.float32)], shape, name="mask")


def _mask_of_group(op: Builder, mask: ir.Value, G: int, T: int) -> ir.Value:
    """The mask [..., T, S] of one head for the rows of G heads: [1, 1, G*T, S]."""
    *_, rows, columns = (1, 1, *shape_of(mask))
    mask = op.reshape(mask, [1, 1, rows, columns], name="mask")
    if G == 1 or rows == 1:
        return mask
    return op.node("CONCATENATION", [mask] * G, [1, 1, G * T, columns], name="mask_groups", axis=2)
