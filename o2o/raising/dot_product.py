"""Dot-product attention, for the rules of all operators that compute it.

What `o2o.attention` expresses becomes that operator: one text, equal head dimensions of keys and values, no
intermediate results. Everything else becomes products and SOFTMAX.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import constant_array
from o2o.model import shape_of
from o2o.operators.core_attention import CoreAttention
from o2o.raising.operation import BOOL, FLOAT, Operation

RAW, CAPPED, BIASED, WEIGHTS = range(4)
"""Which scores are a result: q k', after the soft-cap, after the mask, after the softmax."""


@dataclass(frozen=True)
class Visibility:
    """Which keys a query sees. Key j is at position j, query t at `position + t`.

    Attributes:
        position: The position of the first query: a number, or int32 [B].
        is_causal: Whether keys behind the query are hidden.
        left: How many keys before its own position a query sees; None for all.
        right: How many keys behind its own position a query sees; None for all.
        length: The number of keys that are valid, int32 [B]; None for all.
        may_be_empty: Whether a query may see no key at all. Its result is then 0.
    """

    position: int | ir.Value = 0
    is_causal: bool = False
    left: int | None = None
    right: int | None = None
    length: ir.Value | None = None
    may_be_empty: bool = False

    @property
    def is_full(self) -> bool:
        """Whether every query sees every key."""
        return not self.is_causal and self.left is None and self.right is None and self.length is None


@dataclass(frozen=True)
class Attended:
    """The results of attention.

    Attributes:
        y: [B, T, N, H of the values].
        scores: [B, N, T, S], if they were requested.
    """

    y: ir.Value
    scores: ir.Value | None = None


def attend(
    of: Operation,
    q: ir.Value,
    k: ir.Value,
    v: ir.Value,
    scale: float,
    visibility: Visibility,
    bias: Sequence[ir.Value] = (),
    softcap: float = 0.0,
    sinks: ir.Value | None = None,
    scores: int | None = None,
) -> Attended:
    """Emit attention. It is computed in float32.

    Args:
        of: The node that is raised.
        q: [B, N, T, H].
        k: [B, K, S, H].
        v: [B, K, S, H of the values].
        scale: The factor of q k'.
        visibility: Which keys a query sees.
        bias: Added to the scores; each broadcasts to [B, N, T, S].
        softcap: The bound of the scores; 0 for none.
        sinks: One more logit of each head, [N].
        scores: Which scores are a result, too; None for none.

    Returns:
        The results, in the dtype of q.

    Raises:
        NotRaised: Shapes do not fit.
    """
    dtype = q.dtype
    (B, N, _, H), (_, K, S, _) = shape_of(q), shape_of(k)
    if N % K or shape_of(k)[3] != H or shape_of(v)[:3] != (B, K, S):
        shapes = ", ".join(f"{name} {list(shape_of(x))}" for name, x in (("q", q), ("k", k), ("v", v)))
        of.refuse(f"{shapes} do not fit together")
    q, k, v = (of.cast(x, FLOAT) for x in (q, k, v))
    sinks = None if sinks is None else of.cast(of.reshape(sinks, [N]), FLOAT)
    bias = [of.cast(x, FLOAT) for x in bias]
    if B == 1 and shape_of(v)[3] == H and scores is None:
        return Attended(of.cast(_core(of, q, k, v, scale, visibility, bias, softcap, sinks), dtype))
    result = _products(of, q, k, v, scale, visibility, bias, softcap, sinks, scores)
    chosen = None if result.scores is None else of.cast(result.scores, dtype)
    return Attended(of.cast(result.y, dtype), chosen)


def _core(
    of: Operation,
    q: ir.Value,
    k: ir.Value,
    v: ir.Value,
    scale: float,
    visibility: Visibility,
    bias: Sequence[ir.Value],
    softcap: float,
    sinks: ir.Value | None,
) -> ir.Value:
    """`o2o.attention`, [1, T, N, H]."""
    T, S = shape_of(q)[2], shape_of(k)[2]
    mask, window = None, 0
    position = visibility.position
    if visibility.is_full and not bias and T == 1:
        position = S - 1  # the only query sees all keys: it is behind them
    elif visibility.is_causal and not bias:
        window = 0 if visibility.left is None else visibility.left + 1
    else:
        mask = _mask(of, visibility, bias, T, S)
        position = 0
        if mask is None:
            mask = of.constant(np.zeros([1, 1, 1, 1], np.float32), "no_mask")
    start = of.indices([position], "position") if isinstance(position, int) else of.reshape(position, [1])
    core = CoreAttention(q, k, v, start, scale, mask=mask, sinks=sinks, softcap=softcap, window=window)
    node = core.build(of.op.fresh("attention"))
    of.op.add(node)
    y = node.outputs[0]
    if mask is None and visibility.may_be_empty and T > 1 and not isinstance(position, int):
        return _from_position_0(of, y, start)
    return _without_empty_rows(of, y, mask, visibility, (0, 2, 1, 3))


def _from_position_0(of: Operation, y: ir.Value, position: ir.Value) -> ir.Value:
    """y [1, T, N, H], and 0 for queries in front of position 0: they see no key."""
    steps = np.arange(shape_of(y)[1], dtype=np.int32).reshape(1, -1, 1, 1)
    places = of.emit("ADD", of.reshape(position, [1] * 4), of.constant(steps, "steps"), name="positions")
    is_empty = of.emit("LESS", places, of.indices(0, "zero"), dtype=BOOL, name="is_empty")
    return of.emit("SELECT_V2", is_empty, of.like(0, y, "zero"), y, dtype=y.dtype, name="of_visible")


def _products(
    of: Operation,
    q: ir.Value,
    k: ir.Value,
    v: ir.Value,
    scale: float,
    visibility: Visibility,
    bias: Sequence[ir.Value],
    softcap: float,
    sinks: ir.Value | None,
    wanted: int | None,
) -> Attended:
    """Attention as products and SOFTMAX. The query heads of a group are rows of one matrix."""
    (B, N, T, H), (_, K, S, _) = shape_of(q), shape_of(k)
    groups, all_scores = [B, K, N // K * T, H], [B, N, T, S]
    if scale != 1:
        q = of.emit("MUL", q, of.like(scale, q, "scale"), name="scaled")
    x = of.emit("BATCH_MATMUL", of.reshape(q, groups), k, adjointRhs=True, name="scores")
    stages = {RAW: (x := of.reshape(x, all_scores))}
    if softcap:
        x = of.emit("TANH", of.emit("MUL", x, of.like(1 / softcap, x)), name="bounded")
        x = of.emit("MUL", x, of.like(softcap, x, "softcap"), name="capped")
    stages[CAPPED] = x
    mask = _mask(of, visibility, bias, T, S)
    if mask is not None:
        x = of.emit("ADD", x, mask, name="masked")
    stages[BIASED] = x
    if sinks is not None:
        column = of.broadcast(of.reshape(sinks, [1, N, 1, 1]), [B, N, T, 1])
        x = of.emit("CONCATENATION", x, column, axis=3, name="with_sinks")
    x = of.emit("SOFTMAX", x, beta=1.0, name="weights")
    if sinks is not None:
        x = of.op.slice(x, [0] * 4, all_scores, "weights_of_keys")
    x = stages[WEIGHTS] = _without_empty_rows(of, x, mask, visibility, (0, 1, 2, 3))
    y = of.emit("BATCH_MATMUL", of.reshape(x, [*groups[:3], S]), v, name="mixed")
    y = of.reshape(y, [B, N, T, shape_of(v)[3]])
    return Attended(of.transpose(y, (0, 2, 1, 3)), None if wanted is None else stages[wanted])


def _mask(of: Operation, visibility: Visibility, bias: Sequence[ir.Value], T: int, S: int) -> ir.Value | None:
    """The sum of all that is added to the scores, float32 of 4 axes; None for nothing."""
    terms = [x for x in bias if shape_of(x)]
    visible = _visible(of, visibility, T, S)
    if visible is not None:
        terms.append(additive(of, visible))
    if not terms:
        return None
    arrays = [constant_array(term) for term in terms]
    if all(array is not None for array in arrays):
        total = sum(array for array in arrays if array is not None)
        return of.constant(np.asarray(total, np.float32), "mask") if len(terms) > 1 else terms[0]
    mask = terms[0]
    for term in terms[1:]:
        mask = of.emit("ADD", mask, term, name="mask")
    return mask


def additive(of: Operation, visible: ir.Value) -> ir.Value:
    """Turn a mask of booleans into one to add.

    Args:
        of: The node that is raised.
        visible: True where a key is visible.

    Returns:
        float32: 0 where a key is visible, else minus infinity.
    """
    array = constant_array(visible)
    if array is not None:
        return of.constant(np.where(array, 0, -np.inf), "mask", np.float32)
    zero = of.constant(0, "zero", np.float32)
    hidden = of.constant(-np.inf, "hidden", np.float32)
    return of.emit("SELECT_V2", visible, zero, hidden, dtype=FLOAT, name="mask")


def _visible(of: Operation, visibility: Visibility, T: int, S: int) -> ir.Value | None:
    """Which keys are visible, bool [B or 1, 1, T or 1, S]; None for all."""
    left, right = visibility.left, visibility.right
    if visibility.is_causal:
        right = 0
    keys = np.arange(S, dtype=np.int32).reshape(1, 1, 1, S)
    queries = np.arange(T, dtype=np.int32).reshape(1, 1, T, 1)
    known: list[np.ndarray] = []
    computed: list[ir.Value] = []
    position = visibility.position
    if isinstance(position, int):
        ahead = queries + position - keys
        known += [ahead <= left] if left is not None else []
        known += [ahead >= -right] if right is not None else []
    elif left is not None or right is not None:
        start = of.reshape(position, [math.prod(shape_of(position)), 1, 1, 1])
        offsets = of.constant(queries - keys, "query_minus_key", np.int32)
        distance = of.emit("ADD", start, offsets, name="distance")
        if left is not None:
            computed.append(of.emit("LESS_EQUAL", distance, of.like(left, distance), dtype=BOOL))
        if right is not None:
            computed.append(of.emit("GREATER_EQUAL", distance, of.like(-right, distance), dtype=BOOL))
    if visibility.length is not None:
        length = of.reshape(visibility.length, [math.prod(shape_of(visibility.length)), 1, 1, 1])
        computed.append(of.emit("LESS", of.constant(keys, "keys", np.int32), length, dtype=BOOL))
    if known:
        computed.append(of.constant(np.logical_and.reduce(known), "visible", np.bool_))
    if not computed:
        return None
    visible = computed[0]
    for each in computed[1:]:
        visible = of.emit("LOGICAL_AND", visible, each, name="visible")
    return visible


def _without_empty_rows(
    of: Operation, x: ir.Value, mask: ir.Value | None, visibility: Visibility, axes: tuple[int, ...]
) -> ir.Value:
    """`x`, and 0 for queries that see no key. `axes`: where [B, N, T, .] are in `x`."""
    if mask is None or not visibility.may_be_empty:
        return x
    rows = (1,) * (4 - len(shape_of(mask))) + shape_of(mask)
    numbers = constant_array(mask)
    if numbers is not None:
        empty = numbers.reshape(rows).max(-1, keepdims=True) == -np.inf
        if not empty.any():
            return x
        is_empty = of.constant(empty, "is_empty", np.bool_)
    else:
        best = of.emit(
            "REDUCE_MAX", of.reshape(mask, rows), of.indices([3], "axis"), keepDims=True, name="best"
        )
        hidden = of.constant(-np.inf, "hidden", np.float32)
        is_empty = of.emit("EQUAL", best, hidden, dtype=BOOL, name="is_empty")
    is_empty = of.transpose(is_empty, axes)
    return of.emit("SELECT_V2", is_empty, of.like(0, x, "zero"), x, dtype=x.dtype, name="of_visible")
