"""Attention to KV caches, as `o2o.lower.onnx.attention` gives it to a form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from o2o.lower.onnx.rotation import RopeTables
from o2o.lower.onnx.weights import Matrix


@dataclass(frozen=True)
class Heads:
    """Queries, keys or values of T tokens, float32 [*leading, count * H], to be rotated by `tables`."""

    value: ir.Value
    count: int
    H: int
    tables: RopeTables | None = None


@dataclass(frozen=True)
class Cache:
    """A KV cache.

    Attributes:
        past: The ONNX input, [1, K, S, H]; of a window cache [1, K, R, H].
        present: The ONNX output, of the same shape.
        layout: The layout of the Circle input.
        row: The ONNX input with the row of the first token: its position, or `window_row`.
    """

    past: ir.Value
    present: ir.Value
    layout: str
    row: ir.Value


@dataclass(frozen=True)
class Scores:
    """How scores are computed from q k', as `o2o.operators.core_attention` defines it. ONNX values.

    Attributes:
        row: The ONNX input with the row of the first query: its position, or `window_row`.
        scale: The factor of q k'.
        softcap: The bound of the scores; 0 for none.
        window: The number of keys that a query sees at most; 0 for all up to its own position.
        slopes: ALiBi's slope of each head, a constant [N]; None for none.
        sinks: One more logit of each head, a constant [N]; None for none.
        mask: [1, 1 or N, T, S], added to the scores, which hides all keys after the query's position; None
            for none.
    """

    row: ir.Value
    scale: float
    softcap: float = 0.0
    window: int = 0
    slopes: ir.Value | None = None
    sinks: ir.Value | None = None
    mask: ir.Value | None = None


@dataclass(frozen=True)
class CachedAttention:
    """Causal attention of q to the caches `keys` and `values`, after k and v are written into them."""

    q: Heads
    k: Heads
    v: Heads
    keys: Cache
    values: Cache
    scores: Scores
    name: str


@dataclass(frozen=True)
class ProjectedAttention:
    """Causal attention of N query heads to K key heads, with the projections in front of it.

    Queries, keys and values are x [*leading, D] times `matrices`, plus `biases`. `tables` rotate the queries
    and keys.
    """

    x: ir.Value
    matrices: Sequence[Matrix]
    biases: Sequence[ir.Value | None]

    N: int
    K: int
    H: int
    tables: RopeTables | None
    keys: Cache
    values: Cache
    scores: Scores
    name: str
