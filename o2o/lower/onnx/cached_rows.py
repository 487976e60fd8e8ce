"""Values of a decode graph that are computed from KV caches, one entry for each cached row.

DiffLlama attends to halves of its cached values. Doge adds a projection of them to its scores. Such a value
has an axis S. Its row j is computed from row j of the caches: no operator mixes rows. So the T tokens of an
ONNX run share it. After all T rows are written, each token finds the rows up to its own position as it would
alone. Attention hides the rows behind it.

A value that also depends on the position has one such axis for each token. An operator that mixes rows, other
than attention, has no lowering.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from o2o.lower.onnx.attention import Caches
from o2o.lower.onnx.per_token import TokenValues, token_shape
from o2o.model import DOMAIN, shape_of
from o2o.operators.reference import NotEvaluable, slice_bounds
from o2o.operators.traits import is_elementwise, traits_of
from o2o.rewriting.matchers import constant_ints

_SAME_AXES = ("BROADCAST_TO", "TILE", "SPLIT", "SPLIT_V", "CONCATENATION", "SLICE", "STRIDED_SLICE")
_LAST_AXIS = ("RMS_NORM", "SOFTMAX", "LOG_SOFTMAX")
_REDUCTIONS = ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD")


class CachedRows:
    """The values of cached rows in a decode graph, lowered when something needs them.

    Attributes:
        axes: {value: the axis of its rows, counted from the end}.
        shared: Values with rows that depend on caches and constants alone. All tokens share them.
    """

    def __init__(
        self, tokens: TokenValues, caches: Caches, lower: Callable[[TokenValues, ir.Node], None]
    ) -> None:
        """Find all values of cached rows.

        Args:
            tokens: The values of the graph.
            caches: Its KV caches.
            lower: Lowers a node to values of given leading axes.
        """
        self._tokens, self._caches, self._lower = tokens, caches, lower
        self._without_tokens = copy.copy(tokens)
        self._without_tokens.leading, self._without_tokens.lowered = [], {}
        self._without_tokens.rows = tokens.rows = self
        self.axes: dict[ir.Value, int] = {}
        self.shared: set[ir.Value] = set()
        for node in tokens.graph:
            axis, shared = row_axis(node, self.axes), all(map(self._is_shared, node.inputs))
            if node.op_type == "DYNAMIC_UPDATE_SLICE" and node.inputs[0] in caches.by_input:
                axis, shared = caches.by_input[node.inputs[0]].layout.index("T") - 4, True
            if axis is not None:
                self.axes |= dict.fromkeys(node.outputs, axis)
                self.shared |= set(node.outputs if shared else ())

    def _is_shared(self, value: ir.Value | None) -> bool:
        return value is None or value in self.shared or self._tokens.is_constant(value)

    def get(self, value: ir.Value) -> ir.Value:
        """Return the ONNX value that all tokens share.

        Args:
            value: One of `shared`.

        Returns:
            [*token_shape(value)], without an axis of tokens.

        Raises:
            ModelError: An operator has no lowering.
        """
        lowered = self._without_tokens.lowered
        if value not in lowered:
            node = value.producer()
            assert node is not None
            if value in self._caches.written:
                cache, op = self._caches.present(value, node), self._tokens.op
                by_token = cache.layout == "BTNH"
                rows = op.transpose(cache.present, [0, 2, 1, 3]) if by_token else cache.present
                lowered[value] = op.reshape(rows, token_shape(value))
            else:
                for operand in node.inputs:
                    if operand in self.shared:
                        self.get(operand)
                self._lower(self._without_tokens, node)
        return lowered[value]

    def by_head(self, value: ir.Value) -> ir.Value | None:
        """Return keys or values of attention.

        Args:
            value: [1, K, S, H] in the Circle graph.

        Returns:
            The ONNX value [1, K, S, H]; None if it is no value of cached rows that tokens share.
        """
        if value not in self.shared or self.axes[value] != -2:
            return None
        return self._tokens.op.reshape(self.get(value), shape_of(value))


def row_axis(node: ir.Node, axes: Mapping[ir.Value, int]) -> int | None:
    """Return the axis of the rows in the results of an operator that keeps rows apart.

    Args:
        node: Any node.
        axes: {value: the axis of its rows, counted from the end}.

    Returns:
        The axis, counted from the end; None if no operand has rows, or the operator may mix them.
    """
    rows = [value for value in node.inputs if value in axes]
    row_axes = {axes[value] for value in rows if value is not None}
    if node.domain != DOMAIN or len(row_axes) != 1 or rows[0] is None:
        return None
    (axis,), x, y = row_axes, shape_of(rows[0]), shape_of(node.outputs[0])
    if is_elementwise(node):
        return axis
    if traits_of(node).movement == "reshape":
        return _regrouped(x, axis, y)
    if node.op_type == "TRANSPOSE":
        order = constant_ints(node.inputs[1])
        return None if order is None else order.index(len(x) + axis) - len(order)
    if node.op_type == "FULLY_CONNECTED" and rows == [node.inputs[0]] and axis != -1:
        outer = _regrouped(x[:-1], axis + 1, y[:-1])
        return None if outer is None else outer - 1
    if node.op_type in _LAST_AXIS:
        return axis if axis != -1 else None
    if node.op_type in _REDUCTIONS:
        return _after_reduction(node, axis, len(x), len(y))
    if node.op_type in _SAME_AXES and len(y) >= -axis and y[axis] == x[axis]:
        return axis if _keeps_order(node, axis, x) else None
    return None


def _regrouped(x: Sequence[int], axis: int, y: Sequence[int]) -> int | None:
    """The axis of a reshape's result that holds axis `axis` of its operand."""
    inner = math.prod(x[len(x) + axis + 1 :])
    places = (i for i in range(len(y)) if y[i] == x[axis] and math.prod(y[i + 1 :]) == inner)
    place = next(places, None)
    return None if place is None else place - len(y)


def _after_reduction(node: ir.Node, axis: int, before: int, after: int) -> int | None:
    reduced = constant_ints(node.inputs[1])
    if reduced is None or len(node.inputs[0].shape or ()) != before:  # type: ignore[union-attr]
        return None
    places = {place % before - before for place in reduced}
    if axis in places:
        return None
    return axis if after == before else axis + sum(place > axis for place in places)


def _keeps_order(node: ir.Node, axis: int, x: Sequence[int]) -> bool:
    """Whether an operator that keeps the number of rows keeps their order."""
    if traits_of(node).movement != "subset":
        return True
    try:
        return slice_bounds(node)[len(x) + axis] == (0, x[axis], 1)
    except NotEvaluable:
        return False
