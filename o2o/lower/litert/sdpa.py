"""Scaled dot-product attention in TFLite builtins, causal or masked.

Dimensions: T queries of N heads, S keys and values of K heads, G = N / K query heads for each of them. The
query heads of a group are rows of one matrix, so that no key is ever repeated.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from o2o.model import shape_of
from o2o.rewriting.builder import Builder

HIDDEN = -1e9  # its softmax weight is exactly 0
FAR = 2.0**30  # a power of two: its multiples stay exact, and exp(-FAR) is 0


def dot_product_attention(
    op: Builder,
    q: ir.Value,
    k: ir.Value,
    v: ir.Value,
    scale: float,
    position: ir.Value | None = None,
    mask: ir.Value | None = None,
) -> ir.Value:
    """softmax(scale q k' + mask) v, [1, T, N, H].

    q: [1, N, T, H]. k, v: [1, K, S, H]. mask: added to the scores of each head, [.., T, S]; None for a causal
    one: query t sees the keys 0 to position + t. position: int32 [1], None for 0.
    """
    (_, N, T, H), (_, K, S, _) = shape_of(q), shape_of(k)
    G = N // K
    q = op.node("MUL", [q, op.constant(scale, "scale", np.float32)], [1, N, T, H], name="scaled")
    q = op.reshape(q, [1, K, G * T, H], name="groups")
    scores = op.node(
        "BATCH_MATMUL", [q, k], [1, K, G * T, S], name="scores", adjointLhs=False, adjointRhs=True
    )
    hiding = _causal(op, position, G, T, S) if mask is None else _grouped(op, mask, G, T)
    scores = op.node("ADD", [scores, hiding], [1, K, G * T, S], name="masked")
    weights = op.node("SOFTMAX", [scores], [1, K, G * T, S], name="weights", beta=1.0)
    y = op.node(
        "BATCH_MATMUL", [weights, v], [1, K, G * T, H], name="mixed", adjointLhs=False, adjointRhs=False
    )
    return swap_heads(op, op.reshape(y, [1, N, T, H], name="ungrouped"))


def swap_heads(op: Builder, x: ir.Value) -> ir.Value:
    """[1, a, b, H] -> [1, b, a, H]: tokens before heads or heads before tokens, a reshape when one is 1."""
    one, a, b, H = shape_of(x)
    if 1 in (a, b):
        return op.reshape(x, [one, b, a, H], name="swapped")
    return op.transpose(x, (0, 2, 1, 3), name="swapped")


def _causal(op: Builder, position: ir.Value | None, G: int, T: int, S: int) -> ir.Value:
    """What is added to scores [1, K, G*T, S], queries of one group below each other."""
    query = np.tile(np.arange(T), G if T > 1 else 1)[:, None]  # [G*T, 1], or [1, 1]
    key = np.arange(S)[None, :]
    if position is None:
        return op.constant(np.where(key <= query, 0, HIDDEN).astype(np.float32), "causal")
    return hiding(op, op.reshape(position, [1, 1], name="position"), query, key)


def hiding(op: Builder, ahead: ir.Value, query: np.ndarray, key: np.ndarray) -> ir.Value:
    """What is added to scores [R, C]: 0 for keys up to a query's own, else so little that their weight is 0.

    min(0, FAR (query + ahead - key)), with query [R, 1], key [1, C], and ahead int32 [1, 1]. Arithmetic
    rather than comparisons, because that XNNPACK computes, too, and keeps no mask for later.
    """
    ahead = op.node("CAST", [ahead], [1, 1], ir.DataType.FLOAT)
    ahead = op.node("MUL", [ahead, op.constant(FAR, "far", np.float32)], [1, 1])
    rows = op.node("ADD", [op.constant(FAR * query, "queries_at", np.float32), ahead], query.shape)
    shape = [query.shape[0], key.shape[1]]
    away = op.node("ADD", [rows, op.constant(-FAR * key, "keys_at", np.float32)], shape)
    return op.node("MINIMUM", [away, op.constant(0.0, "zero", np.float32)], shape, name="hiding")


def _grouped(op: Builder, mask: ir.Value, G: int, T: int) -> ir.Value:
    """The mask [.., T, S] of one head, for G heads whose queries are below each other: [1, 1, G*T, S]."""
    *_, rows, columns = (1, 1, *shape_of(mask))
    mask = op.reshape(mask, [1, 1, rows, columns], name="mask")
    if G == 1 or rows == 1:
        return mask
    return op.node("CONCATENATION", [mask] * G, [1, 1, G * T, columns], name="mask_groups", axis=2)
