"""Lowering the graph of one token to a graph of T tokens.

A decode graph is a function of one token and its position. Each of its operators except attention computes
with that token alone. For T tokens, each value that depends on the token or its position gets a leading axis
T, or two leading axes [1, T]:

    Circle [1, 1, 64], of one token  ->  ONNX [T, 64]        (leading axes of size 1 are dropped)
    Circle [1, 16, 1, 4]             ->  ONNX [T, 16, 1, 4]

So no axis has to be guessed, and an operator that only moves axes of size 1 needs no ONNX operator. Attention
sees other tokens through the caches, where row p holds the token at position p.

A value that depends on the position alone is computed at every position (`o2o.operators.reference`). It
becomes a table, and a Gather takes the rows of the T positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import onnx_ir as ir

from o2o.errors import ModelError
from o2o.formats.tensors import constant_array, is_constant
from o2o.lower.onnx.builder import INT64, Dim, OnnxBuilder, dims
from o2o.model import Model, shape_of
from o2o.operators.core_attention import is_core_attention
from o2o.operators.reference import NotEvaluable, evaluate, has_kernel
from o2o.operators.traits import RESHAPE_OPS
from o2o.rewriting.regions import Regions

LIMIT = 1 << 28  # elements of a table


def token_shape(value: ir.Value) -> tuple[int, ...]:
    """Return the shape that one token has of a value.

    Args:
        value: A value of the Circle graph.

    Returns:
        Its shape without leading axes of size 1.
    """
    return strip_leading_ones(shape_of(value))


def strip_leading_ones(shape: Sequence[int]) -> tuple[int, ...]:
    """Return `shape` without leading axes of size 1.

    Args:
        shape: Any shape.

    Returns:
        The rest, () where all are 1.
    """
    first = next((axis for axis, dim in enumerate(shape) if dim != 1), len(shape))
    return tuple(shape[first:])


class RowValues(Protocol):
    """Values of cached rows: see `o2o.lower.onnx.cached_rows.CachedRows`."""

    axes: dict[ir.Value, int]
    shared: set[ir.Value]

    def get(self, value: ir.Value) -> ir.Value:
        """Return the ONNX value that all tokens share.

        Args:
            value: One of `shared`.

        Returns:
            [*token_shape(value)], without an axis of tokens.
        """

    def by_head(self, value: ir.Value) -> ir.Value | None:
        """Return keys or values of attention.

        Args:
            value: [1, K, S, H] in the Circle graph.

        Returns:
            The ONNX value [1, K, S, H]; None if it is no value of cached rows that tokens share.
        """


class TokenValues:
    """The values of a decode graph, in Circle and in ONNX.

    Attributes:
        leading: The leading axes of ONNX values, [T] or [1, T].
        lowered: The ONNX value [*leading, *token_shape] of each Circle value that is lowered already.
        tokens: The ONNX input of token ids, [1, T].
        position: The ONNX input, int64 [1]: the position of the first token.
        positions: The position of each token, int64 [*leading].
        count: T, int64 [1].
        position_input: The Circle input of the role `position`.
        window_row: The ONNX input, int64 [1]: the row of the first token in window caches; None without
            such caches.
        steps: 0 to T - 1, int64 [T].
        regions: The regions of the Circle graph.
        rows: The values that are computed from cached rows.
    """

    rows: RowValues

    def __init__(
        self,
        model: Model,
        graph: ir.Graph,
        op: OnnxBuilder,
        inputs: Mapping[str, ir.Value],
        capacity: int,
        leading: Sequence[Dim],
        unrecognized: str = "",
    ) -> None:
        self.model, self.graph, self.op, self.capacity = model, graph, op, capacity
        self.leading, self._unrecognized = list(leading), unrecognized
        tokens, position = inputs["tokens"], inputs["position"]
        self.position_input = position
        self.lowered: dict[ir.Value, ir.Value] = {}
        self.tokens = op.value("tokens", tokens.dtype or INT64, [1, "T"])
        self.position = op.value("position", INT64, [1])
        self.lowered[tokens] = op.reshape(self.tokens, self.leading, "ids")
        zero, one = op.constant(0, "zero"), op.constant(1, "one")
        self.count = op.node("Shape", [self.tokens], [1], INT64, "T", start=1, end=2)
        scalar = op.node("Squeeze", [self.count], [], name="T/scalar")
        self.steps = op.node("Range", [zero, scalar, one], ["T"], name="steps")
        positions = op.node("Add", [self.steps, self.position], ["T"], name="positions")
        self.positions = op.reshape(positions, self.leading)
        self.lowered[position] = self._cast(self.positions, position.dtype or INT64)
        self._constant, self._by_position = _token_independent_values(graph, position)
        self._window_row_input = inputs.get("window_row")
        self.window_row: ir.Value | None = None
        self._by_window_row: set[ir.Value] = set()
        if self._window_row_input is not None:
            self.window_row = op.value("window_row", INT64, [1])
            _, self._by_window_row = _token_independent_values(graph, self._window_row_input)
        self._tables: dict[ir.Value, np.ndarray] = {}
        self.regions = Regions(graph)

    def _cast(self, x: ir.Value, dtype: ir.DataType) -> ir.Value:
        return x if x.dtype == dtype else self.op.node("Cast", [x], dims(x), dtype, to=int(dtype))

    def locate(self, node: ir.Node) -> str:
        """See `o2o.model.Model.locate`."""
        return self.model.locate(self.graph, node)

    def error(self, node: ir.Node, reason: str) -> ModelError:
        """Return the error that a node cannot be lowered.

        Args:
            node: The node.
            reason: Why.

        Returns:
            The error, to be raised.
        """
        return ModelError(f"{self.locate(node)}: {reason}")

    def fold(self, value: ir.Value) -> np.ndarray | None:
        """Compute a value that depends on neither token nor position.

        Args:
            value: A value of the Circle graph.

        Returns:
            Its elements; None if it depends on more, or is quantized.
        """
        if value not in self._constant:
            return constant_array(value)
        try:
            return evaluate(value, {})
        except NotEvaluable:
            return None

    def table(self, value: ir.Value) -> np.ndarray | None:
        """Compute a value at every position.

        Args:
            value: A value of the Circle graph.

        Returns:
            [S, *token_shape(value)]; None if it depends on more than the position.

        Raises:
            ModelError: It is too large, or uses an operator without a numpy kernel.
        """
        if value not in self._by_position:
            return None
        while (node := value.producer()) is not None and node.op_type in RESHAPE_OPS:
            # All reshapes of a value share one table.
            source = node.inputs[0]
            if source is None or source not in self._by_position or token_shape(source) != token_shape(value):
                break
            value = source
        if value not in self._tables:
            self._tables[value] = self._table_at(value, self.position_input, self.capacity)
        return self._tables[value]

    def row_table(self, value: ir.Value, row: ir.Value, rows: int) -> np.ndarray | None:
        """Compute a value at every row of a cache.

        Args:
            value: A value of the Circle graph.
            row: The ONNX input with the row of the first token: `position` or `window_row`.
            rows: The number of rows.

        Returns:
            [rows, *token_shape(value)]; None if it depends on anything else.

        Raises:
            ModelError: See `table`.
        """
        if row is self.position:
            return self.table(value)
        if value not in self._by_window_row:
            return None
        if value not in self._tables:
            assert self._window_row_input is not None
            self._tables[value] = self._table_at(value, self._window_row_input, rows)
        return self._tables[value]

    def _table_at(self, value: ir.Value, leaf: ir.Value, count: int) -> np.ndarray:
        """`value` at each number of `leaf` below `count`."""
        shape = token_shape(value)
        place = self.locate(node) if (node := value.producer()) is not None else str(value.name)
        if count * int(np.prod(shape)) > LIMIT:
            raise ModelError(
                f"{place}: it is too large to be computed at {count} positions: "
                "convert with a smaller --max-length"
            )
        assert leaf.dtype is not None
        try:
            rows = [
                evaluate(value, {leaf: np.full(shape_of(leaf), position, leaf.dtype.numpy())}).reshape(shape)
                for position in range(count)
            ]
        except NotEvaluable as reason:
            raise ModelError(f"{place}: it cannot be computed at every position: {reason}") from reason
        return np.stack(rows)

    def is_token_independent(self, value: ir.Value) -> bool:
        """Return whether a value depends on no token, so that it becomes a constant or a table.

        Args:
            value: A value of the Circle graph.

        Returns:
            Whether it depends on constants, and the position or the row in window caches alone.
        """
        return value in self._by_position or value in self._constant or value in self._by_window_row

    def is_constant(self, value: ir.Value) -> bool:
        """Return whether a value depends on neither token nor position.

        Args:
            value: A value of the Circle graph.

        Returns:
            Whether it is a constant, or computed from constants alone.
        """
        return value in self._constant or is_constant(value)

    def is_row(self, value: ir.Value, row: ir.Value, rows: int) -> bool:
        """Return whether a value is the token's row in a cache.

        Args:
            value: A value of the Circle graph.
            row: The ONNX input with the row of the first token.
            rows: The number of rows.

        Returns:
            Whether it equals the row at every row, in any dtype and shape.
        """
        table = self.row_table(value, row, rows)
        return table is not None and np.array_equal(table.reshape(-1), np.arange(rows))

    def get(self, value: ir.Value, node: ir.Node) -> ir.Value:
        """Return the ONNX value of an operand.

        Args:
            value: A value of the Circle graph.
            node: The node that takes it, for messages.

        Returns:
            [*leading, *token_shape(value)].

        Raises:
            ModelError: It depends on more than one token, and `node` mixes these.
        """
        in_rows = node.outputs[0] in self.rows.axes or is_core_attention(node)
        mixes = value in self.rows.axes and not in_rows
        if value in self.lowered and not mixes:
            return self.lowered[value]
        if value in self.rows.shared and not mixes:
            ones = [1] * len(self.leading)
            self.lowered[value] = self.op.reshape(self.rows.get(value), [*ones, *token_shape(value)])
            return self.lowered[value]
        table = self.table(value)
        if table is None:
            reason = f"it takes {value.name}, which depends on other tokens"
            raise self.error(node, f"{reason}; {self._unrecognized}" if self._unrecognized else reason)
        rows = self.op.constant(table, f"{value.name}/table", table.dtype)
        shape = [*self.leading, *token_shape(value)]
        self.lowered[value] = self.op.node(
            "Gather", [rows, self.positions], shape, name=value.name or "", axis=0
        )
        return self.lowered[value]

    def reshaped(self, value: ir.Value, node: ir.Node, shape: Sequence[int]) -> ir.Value:
        """Return the ONNX value of an operand in another shape.

        Args:
            value: A value of the Circle graph.
            node: The node that takes it, for messages.
            shape: The shape behind the leading axes.

        Returns:
            [*leading, *shape].
        """
        lowered = self.get(value, node)
        return self.op.reshape(lowered, [*self.leading_of(lowered), *shape])

    def operand(self, value: ir.Value | None, node: ir.Node, rank: int) -> ir.Value:
        """Return an operand that broadcasts with others.

        Args:
            value: A value of the Circle graph.
            node: The node that takes it, for messages.
            rank: The number of axes behind the leading ones.

        Returns:
            A constant without leading axes, or [*leading, ...] with `rank` more axes.

        Raises:
            ModelError: It is missing, or a quantized constant.
        """
        if value is None:
            raise self.error(node, "an operand is missing")
        constant = self.fold(value)
        if constant is not None:
            constant = constant.reshape(strip_leading_ones(constant.shape))
            return self.op.constant(constant, value.name or "constant", constant.dtype)
        if is_constant(value):
            raise self.error(node, f"quantized constant operand {value.name} is not supported here")
        shape = token_shape(value)
        return self.reshaped(value, node, (1,) * (rank - len(shape)) + shape)

    def leading_of(self, *operands: ir.Value) -> list[Dim]:
        """Return the leading axes of a result.

        Args:
            operands: ONNX values it is computed from.

        Returns:
            `leading`, or 1 in place of T where the operands hold the last token only.
        """
        candidates = [dims(v)[: len(self.leading)] for v in operands if v.const_value is None]
        return self.leading if self.leading in candidates else candidates[0]

    def assign(self, value: ir.Value, lowered: ir.Value) -> None:
        """Set the ONNX value of a Circle value.

        Args:
            value: A result in the Circle graph.
            lowered: The same in ONNX, with leading axes and any shape behind them.
        """
        self.lowered[value] = self.op.reshape(lowered, [*self.leading_of(lowered), *token_shape(value)])


def _token_independent_values(graph: ir.Graph, position: ir.Value) -> tuple[set[ir.Value], set[ir.Value]]:
    """The values computed from constants alone, and the values computed from constants and the position.

    The second are only those with a reference kernel: others are computed at run time.
    """
    constant: set[ir.Value] = set()
    by_position = {position}
    for node in graph:
        operands = [value for value in node.inputs if value is not None]
        varying = [value for value in operands if not (is_constant(value) or value in constant)]
        if operands and not varying:
            constant |= set(node.outputs)
        elif varying and all(value in by_position for value in varying) and has_kernel(node):
            by_position |= set(node.outputs)
    return constant, by_position


Rule = Callable[[TokenValues, ir.Node], None]
"""Builds the ONNX operators of a node and assigns its results."""
