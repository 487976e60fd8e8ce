"""What each value of a growing graph becomes when its caches are static.

The numbers of a value at three lengths P of the past show what it is:

    FIXED     the same numbers at each P
    LINEAR    integers a + k P of a fixed shape: positions, or the sizes of other values
    PREFIX    its shape grows with P, and a smaller instance starts a larger one: 0, 1, ..., P+T-1
    VARYING   all others, such as a causal mask, and all that depends on inputs or weights

A value that grows and is computed from positions is VARYING, whatever its numbers are. A mask may be all true
in a growing graph, whose keys all exist. In a static graph it must still be computed.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import is_constant, is_constant_node
from o2o.rewriting.static_caches.instances import Instance


class Kind(enum.Enum):
    """What a value becomes; see the module."""

    FIXED = enum.auto()
    LINEAR = enum.auto()
    PREFIX = enum.auto()
    VARYING = enum.auto()


@dataclass(frozen=True)
class Linear:
    """Integers that depend on the length of the past: offset + slope * P.

    Attributes:
        offset: Numbers of any shape.
        slope: Numbers of the same shape.
    """

    offset: np.ndarray
    slope: np.ndarray


_SIZE_OPERANDS = {
    "Reshape": (1,),
    "Expand": (1,),
    "ConstantOfShape": (0,),
    "Tile": (1,),
    "Pad": (1,),
    "Split": (1,),
    "Slice": (1, 2, 3, 4),
    "Unsqueeze": (1,),
    "Squeeze": (1,),
}
"""Operands that are sizes or axes, by operator of ONNX."""


def is_size_operand(node: ir.Node, index: int) -> bool:
    """Return whether an operand is a size, so that it grows with the caches.

    Args:
        node: A node.
        index: The number of an operand.

    Returns:
        True for the shape of Reshape, for example.
    """
    return node.domain == "" and index in _SIZE_OPERANDS.get(node.op_type, ())


class PastNumbers:
    """The kinds of all values of a growing graph."""

    def __init__(self, graph: ir.Graph, instances: Sequence[Instance]) -> None:
        """Find the kinds.

        Args:
            graph: The main graph, whose nodes are sorted.
            instances: What is known of it for three lengths of the past. The first is that of the capacity.
        """
        self.instances = instances
        self.kinds = {v: Kind.LINEAR for v in graph.inputs if v.name in instances[0].numbers}
        for node in graph:
            kinds = self._kinds_of(node)
            for value, kind in zip(node.outputs, kinds, strict=True):
                self.kinds[value] = kind

    def kind(self, value: ir.Value) -> Kind:
        """Return the kind of a value.

        Args:
            value: A value of the graph.

        Returns:
            Its kind.
        """
        if value in self.kinds:
            return self.kinds[value]
        return Kind.FIXED if is_constant(value) else Kind.VARYING

    @property
    def pasts(self) -> list[int]:
        """The lengths of the past that are compared."""
        return [one.past for one in self.instances]

    def numbers(self, value: ir.Value, number: int = 0) -> np.ndarray:
        """Return the numbers of a value.

        Args:
            value: A FIXED, LINEAR or PREFIX value.
            number: An instance; the first is that where past and new tokens fill the capacity.

        Returns:
            Its numbers.
        """
        if value.name in self.instances[number].numbers:
            return self.instances[number].numbers[value.name]
        assert value.const_value is not None
        return value.const_value.numpy()

    def linear(self, value: ir.Value) -> Linear:
        """Return the numbers of a value as a function of P.

        Args:
            value: A LINEAR value.

        Returns:
            Its offset and slope.
        """
        line = self.line([one.numbers[value.name or ""] for one in self.instances])
        assert line is not None
        return line

    def shapes(self, value: ir.Value) -> list[tuple[int, ...]] | None:
        """Return the shape of a value at each length of the past.

        Args:
            value: A value of the graph.

        Returns:
            The shapes; None if one is unknown.
        """
        if is_constant(value) and value.shape is not None:
            return [tuple(value.shape.numpy())] * len(self.instances)
        known = [one.shapes.get(value.name or "") for one in self.instances]
        return None if any(shape is None for shape in known) else known  # type: ignore[return-value]

    def growing_axes(self, value: ir.Value) -> list[int]:
        """Return the axes of a value that grow with the past.

        Args:
            value: A value of the graph.

        Returns:
            Their numbers; empty if its shape is unknown.
        """
        shapes = self.shapes(value)
        if shapes is None:
            return []
        return [axis for axis, sizes in enumerate(zip(*shapes, strict=False)) if len(set(sizes)) > 1]

    # ---- kinds ---------------------------------------------------------------------------------

    def _kinds_of(self, node: ir.Node) -> list[Kind]:
        names = [value.name or "" for value in node.outputs]
        if is_constant_node(node):
            return [Kind.FIXED] * len(names)
        if not all(name in one.numbers for name in names for one in self.instances):
            return [Kind.VARYING] * len(names)
        if node.domain == "" and node.op_type in ("Shape", "Size"):
            operands = set()
        else:
            operands = {
                self.kind(value)
                for index, value in enumerate(node.inputs)
                if value is not None and not is_size_operand(node, index)
            }
        if node.domain == "" and node.op_type == "Range":
            operands.discard(Kind.LINEAR)  # its length is the difference of two operands
        if Kind.VARYING in operands:
            return [Kind.VARYING] * len(names)
        return [self._kind_of(name, Kind.LINEAR in operands) for name in names]

    def _kind_of(self, name: str, is_from_positions: bool) -> Kind:
        arrays = [one.numbers[name] for one in self.instances]
        if len({array.shape for array in arrays}) == 1:
            if all(np.array_equal(array, arrays[0]) for array in arrays):
                return Kind.FIXED
            return Kind.LINEAR if self.line(arrays) is not None else Kind.VARYING
        return Kind.VARYING if is_from_positions or not _is_prefix(arrays) else Kind.PREFIX

    def line(self, arrays: Sequence[np.ndarray]) -> Linear | None:
        """Return the line through numbers at the lengths of the past.

        Args:
            arrays: Numbers of one shape, one array for each instance.

        Returns:
            Their offset and slope; None if they are on no line of integers.
        """
        first, second, third = (_integers(array) for array in arrays)
        if first is None or second is None or third is None:
            return None
        p = self.pasts
        slope, rest = np.divmod(first - second, p[0] - p[1])
        offset = first - slope * p[0]
        if rest.any() or not np.array_equal(offset + slope * p[2], third):
            return None
        return Linear(offset, slope)


def _integers(array: np.ndarray) -> np.ndarray | None:
    if array.dtype == bool or array.dtype.kind not in "iuf":
        return None
    numbers = array.astype(np.int64)
    return numbers if np.array_equal(numbers, array) else None


def _is_prefix(arrays: Sequence[np.ndarray]) -> bool:
    """Whether each smaller array is the start of the first one, along the axes that grow."""
    whole = arrays[0]
    for array in arrays[1:]:
        if array.ndim != whole.ndim or any(a > b for a, b in zip(array.shape, whole.shape, strict=True)):
            return False
        if not np.array_equal(array, whole[tuple(slice(size) for size in array.shape)]):
            return False
    return True
