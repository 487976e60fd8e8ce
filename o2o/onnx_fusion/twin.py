"""The twin of an ONNX graph: the same computation in Circle's operators, at one choice of sizes."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import constant_array
from o2o.model import attribute, shape_of
from o2o.onnx_fusion.sizes import twin_sizes
from o2o.operators.traits import traits_of
from o2o.raising import raise_graph
from o2o.rewriting.dead_code_elimination import remove_dead_nodes
from o2o.rewriting.matchers import constant_ints, fail

_ONLY_FIRST = ("reshape", "transpose", "broadcast", "subset")
"""Movements whose other operands are shapes and indices."""
_COMPUTES = ("Concat", "MatMul", "Gemm", "Softmax", "ReduceMean", "ReduceMax", "ReduceSum", "Split", "IsNaN")
_SKIP = 4
"""How many primes the sizes of another twin leave out."""
_COMPUTES_MORE = ("Dropout", "LpNormalization", "Constant", "FusedMatMul")


class Twin:
    """A raised graph, and the way back from its values to those of the ONNX graph.

    Attributes:
        graph: The raised graph.
        source: The ONNX graph.
        batch: The number of texts B in the twin.
    """

    def __init__(self, source: ir.Graph) -> None:
        """Raise a graph.

        Args:
            source: An ONNX graph; it stays as it is.

        Raises:
            ModelError: It cannot be raised at all.
        """
        self.source = source
        sizes, self.batch = twin_sizes(source)
        raised = raise_graph(source, sizes)
        remove_dead_nodes(raised.graph)  # ONNX operators that became others leave their operands behind
        self.graph, self._values, self._origins = raised.graph, raised.values, raised.origins
        self._replaced: dict[ir.Value, ir.Value] = {}
        self._other: dict[ir.Value, ir.Value] | None = None

    def original(self, value: ir.Value, what: str) -> ir.Value:
        """Return the ONNX value that a value of the twin stands for.

        Args:
            value: A value of the twin.
            what: What it is, for the message.

        Returns:
            The value of the ONNX graph. `current` follows what replaced it.

        Raises:
            MatchFailure: The ONNX graph has no such value.
        """
        origin = self._origins.get(value)
        if origin is None or not (origin.graph is self.source or origin.is_initializer()):
            fail(f"{what} is no tensor of the ONNX graph", value)
        return origin

    def current(self, value: ir.Value) -> ir.Value:
        """Return the value that stands for a value of the ONNX graph now.

        Args:
            value: A value of the graph that was raised, or a newer one.

        Returns:
            The last value in its place.
        """
        while value in self._replaced:
            value = self._replaced[value]
        return value

    def is_fixed(self, value: ir.Value) -> bool:
        """Whether a value of the ONNX graph is the same number at all sizes. Only before the graph changes.

        Args:
            value: A value of the graph.

        Returns:
            True if it is the same constant in the twin and in another one of other sizes.
        """
        numbers = constant_array(self._values.get(value))
        if numbers is None:
            return False
        if self._other is None:
            sizes, _ = twin_sizes(self.source, skip=_SKIP)
            self._other = raise_graph(self.source, sizes).values
        other = constant_array(self._other.get(value))
        return other is not None and np.array_equal(numbers, other)

    def has(self, value: ir.Value) -> bool:
        """Whether the ONNX graph has a value of the twin.

        Args:
            value: A value of the twin.

        Returns:
            False for intermediate results of one ONNX operator.
        """
        origin = self._origins.get(value)
        return origin is not None and (origin.graph is self.source or origin.is_initializer())

    def shape(self, value: ir.Value) -> tuple[int, ...]:
        """Return the shape of an ONNX value in the twin.

        Args:
            value: A value of the ONNX graph.

        Returns:
            Its shape at the twin's sizes.

        Raises:
            MatchFailure: It is not known.
        """
        raised = self._values.get(value)
        if raised is None or raised.shape is None:
            fail("its shape is not known", None)
        return shape_of(raised)

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Note that a value of the ONNX graph was replaced.

        Args:
            old: The value.
            new: The value in its place.
        """
        self._replaced[old] = new
        if old in self._values:
            self._values.setdefault(new, self._values[old])

    def check_between(self, results: Collection[ir.Value], operands: Collection[ir.Value]) -> None:
        """Check that sizes do not decide what the operators between operands and results do.

        A slice may keep all tokens of the twin, and not all of a longer text.

        Args:
            results: Values of the ONNX graph.
            operands: The values from which a match computes them.

        Raises:
            MatchFailure: An operator between them takes a part along an axis other than the last one.
        """
        seen = set(operands)
        pending = [value for value in results if value not in seen]
        while pending:
            value = pending.pop()
            node = value.producer()
            if value in seen or node is None:
                continue
            seen.add(value)
            if self.is_fixed(value):
                continue
            traits = traits_of(node)
            known = node.domain in ("", "ai.onnx", "com.microsoft")
            if not known or not (
                traits.elementwise or traits.movement or node.op_type in (*_COMPUTES, *_COMPUTES_MORE)
            ):
                fail(f"{node.op_type} is between the operands and the result", self._values.get(value))
            if (traits.movement == "subset" or node.op_type == "Split") and not self._is_of_last_axis(node):
                fail(f"{node.op_type} takes a part along another axis than the last", self._values.get(value))
            only_first = traits.movement in _ONLY_FIRST or node.op_type.startswith(("Reduce", "Split"))
            pending += [v for v in (node.inputs[:1] if only_first else node.inputs) if v is not None]

    def _is_of_last_axis(self, node: ir.Node) -> bool:
        source = node.inputs[0]
        assert source is not None
        rank = len(self.shape(source))
        if node.op_type == "Split":
            return bool(attribute(node, "axis", 0) % rank == rank - 1)
        if node.op_type != "Slice":
            return False
        axes = attribute(node, "axes") if len(node.inputs) < 2 else None
        if len(node.inputs) > 3:
            raised = self._values.get(node.inputs[3]) if node.inputs[3] is not None else None
            axes = constant_ints(raised)
        return axes is not None and [axis % rank for axis in axes] == [rank - 1]
