"""One graph for one token, done for T tokens at a time.

A decode graph is a function of one token and its position: each of its operators, but for attention, computes
what it computes for that token alone. So it is done for T tokens by giving every value that depends on the
token, or on its position, an axis T in front (or [1, T], as the form likes it):

    Circle [1, 1, 64], of one token  ->  ONNX [T, 64]        (leading axes of size 1 are dropped)
    Circle [1, 16, 1, 4]             ->  ONNX [T, 16, 1, 4]

No axis has to be guessed, and what only moves a token's numbers among axes of size 1 is nothing at all.
Attention alone looks at other tokens; it does so through the caches, where row p is that of position p.

What depends on the position alone is computed at every position there is (`o2o.operators.reference`) and
becomes a
table, of which the rows of the T positions are taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from o2o.errors import ModelError
from o2o.formats.dialects import locate
from o2o.formats.tensors import is_constant, numbers
from o2o.lower.onnx.builder import INT64, Dim, Emitter, dims
from o2o.model import Model, shape_of
from o2o.operators.facts import RESHAPE_OPS
from o2o.operators.reference import NotEvaluable, evaluate

LIMIT = 1 << 28  # numbers of a table, at most


def inner(value: ir.Value) -> tuple[int, ...]:
    """What one token has of `value`: its shape without leading axes of size 1."""
    return stripped(shape_of(value))


def stripped(shape: Sequence[int]) -> tuple[int, ...]:
    first = next((axis for axis, dim in enumerate(shape) if dim != 1), len(shape))
    return tuple(shape[first:])


class Tokens:
    """The values of a decode graph and what they have become.

    front: [T] or [1, T], the axes in front. values: by the Circle value, the ONNX value [*front, ...].
    position: int64 [1], of the first token; positions: int64 [*front], of each. count: T, int64 [1].
    """

    def __init__(
        self,
        model: Model,
        graph: ir.Graph,
        op: Emitter,
        ends: Mapping[str, ir.Value],
        capacity: int,
        front: Sequence[Dim],
    ) -> None:
        """ends: the inputs of `graph` that are its tokens and its position."""
        self.model, self.graph, self.op, self.capacity = model, graph, op, capacity
        self.front = list(front)
        tokens, position = ends["tokens"], ends["position"]
        self.position_input = position
        self.values: dict[ir.Value, ir.Value] = {}
        self.tokens = op.value("tokens", tokens.dtype or INT64, [1, "T"])
        self.position = op.value("position", INT64, [1])
        self.values[tokens] = op.reshape(self.tokens, self.front, "ids")
        zero, one = op.constant(0, "zero"), op.constant(1, "one")
        self.count = op.node("Shape", [self.tokens], [1], INT64, "T", start=1, end=2)
        scalar = op.node("Squeeze", [self.count], [], name="T/scalar")
        steps = op.node("Range", [zero, scalar, one], ["T"], name="steps")
        positions = op.node("Add", [steps, self.position], ["T"], name="positions")
        self.positions = op.reshape(positions, self.front)
        self._constant, self._by_position = _without_tokens(graph, position)
        self._tables: dict[ir.Value, np.ndarray] = {}

    def called(self, node: ir.Node) -> str:
        return locate(self.model, self.graph, node)

    def refuse(self, node: ir.Node, why: str) -> ModelError:
        """What cannot be done for several tokens, in one line."""
        return ModelError(f"{self.called(node)}: {why}")

    def fold(self, value: ir.Value) -> np.ndarray | None:
        """The numbers of what depends on neither token nor position; None for all else, and for quantised."""
        if value not in self._constant:
            return numbers(value)
        try:
            return evaluate(value, {})
        except NotEvaluable:
            return None

    def table(self, value: ir.Value) -> np.ndarray | None:
        """What `value` is at each position, [capacity, *inner(value)]; None where it depends on more."""
        if value not in self._by_position:
            return None
        while (
            node := value.producer()
        ) is not None and node.op_type in RESHAPE_OPS:  # one table for many shapes
            source = node.inputs[0]
            if source is None or source not in self._by_position or inner(source) != inner(value):
                break
            value = source
        if value not in self._tables:
            self._tables[value] = self._computed(value)
        return self._tables[value]

    def _computed(self, value: ir.Value) -> np.ndarray:
        shape = inner(value)
        if self.capacity * int(np.prod(shape)) > LIMIT:
            raise ModelError(f"{value.name} is too large to be computed at {self.capacity} positions")
        leaf = self.position_input
        assert leaf.dtype is not None
        try:
            rows = [
                evaluate(value, {leaf: np.full(shape_of(leaf), position, leaf.dtype.numpy())}).reshape(shape)
                for position in range(self.capacity)
            ]
        except NotEvaluable as reason:
            raise ModelError(f"{value.name} cannot be computed at every position: {reason}") from reason
        return np.stack(rows)

    def is_without_tokens(self, value: ir.Value) -> bool:
        """Whether `value` depends on no token: it becomes a constant or a table where it is used."""
        return value in self._by_position or value in self._constant

    def is_position(self, value: ir.Value) -> bool:
        """Whether `value` is the token's position, whatever its dtype and shape."""
        table = self.table(value)
        return table is not None and np.array_equal(table.reshape(-1), np.arange(self.capacity))

    def get(self, value: ir.Value, node: ir.Node) -> ir.Value:
        """`value`, which `node` takes, [*front, *inner(value)]. Raises ModelError for what a token lacks."""
        if value in self.values:
            return self.values[value]
        table = self.table(value)
        if table is None:
            raise self.refuse(
                node, f"it takes {value.name}, which is not of one token alone: run fuse.attention.py first"
            )
        rows = self.op.constant(table, f"{value.name}/table", table.dtype)
        shape = [*self.front, *inner(value)]
        found = self.op.node("Gather", [rows, self.positions], shape, name=value.name or "", axis=0)
        self.values[value] = found
        return found

    def viewed(self, value: ir.Value, node: ir.Node, shape: Sequence[int]) -> ir.Value:
        """What one token has of `value` in `shape`, behind the axes in front."""
        found = self.get(value, node)
        return self.op.reshape(found, [*self.front_of(found), *shape])

    def operand(self, value: ir.Value | None, node: ir.Node, rank: int) -> ir.Value:
        """An operand to broadcast with others of which one token has `rank` axes: constants have no T."""
        if value is None:
            raise self.refuse(node, "it lacks an operand")
        constant = self.fold(value)
        if constant is not None:
            constant = constant.reshape(stripped(constant.shape))
            return self.op.constant(constant, value.name or "constant", constant.dtype)
        if is_constant(value):
            raise self.refuse(node, f"it computes with {value.name}, which is quantised")
        shape = inner(value)
        return self.viewed(value, node, (1,) * (rank - len(shape)) + shape)

    def front_of(self, *operands: ir.Value) -> list[Dim]:
        """The axes in front of what is made of these: 1 for T, where only the last token is gone on with."""
        fronts = [dims(v)[: len(self.front)] for v in operands if v.const_value is None]
        return self.front if self.front in fronts else fronts[0]

    def put(self, value: ir.Value, made: ir.Value) -> None:
        """`value` is `made`, which may still be in another shape than [*front, *inner(value)]."""
        self.values[value] = self.op.reshape(made, [*self.front_of(made), *inner(value)])


def _without_tokens(graph: ir.Graph, position: ir.Value) -> tuple[set[ir.Value], set[ir.Value]]:
    """What `graph` computes of constants alone, and what of them and the position."""
    constant: set[ir.Value] = set()
    by_position = {position}
    for node in graph:
        operands = [value for value in node.inputs if value is not None]
        free = [value for value in operands if not (is_constant(value) or value in constant)]
        if operands and not free:
            constant |= set(node.outputs)
        elif free and all(value in by_position for value in free):
            by_position |= set(node.outputs)
    return constant, by_position
