"""Named axes: what each axis of a tensor means, followed through reshapes, transposes and broadcasts.

Each axis is a tuple of named factors, outermost first, as in einops. A projection's output [1, T, N*H] of
grouped-query attention is `((), ("T",), ("K", "G", "H"))`. Factors of size 1 are left out: they move no
number. Two tensors with equal axes hold the same numbers in the same places. This proves layouts without
looking at numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from o2o.model import attribute, shape_of
from o2o.operators.traits import LAYOUT_OPS, RESHAPE_OPS
from o2o.rewriting.matchers import constant_ints, fail, producer_of

Axes = tuple[tuple[str, ...], ...]


def skip_reshapes(value: ir.Value) -> ir.Value:
    """Follow `value` up through reshapes.

    Args:
        value: Any value.

    Returns:
        The operand of the first reshape, or `value` if there is none.
    """
    while (node := producer_of(value, *RESHAPE_OPS)) is not None and node.inputs[0] is not None:
        value = node.inputs[0]
    return value


@dataclass(frozen=True)
class Factors:
    """The sizes of the named factors of a match, such as an attention block: {"T": 8, "H": 64}."""

    sizes: Mapping[str, int]

    def axes(self, *names: Sequence[str]) -> Axes:
        """Return the axes with these factors, without factors of size 1.

        Args:
            *names: The factors of each axis, such as `("T", "KGH")` or `(("K", "G"), "H")`.

        Returns:
            The axes.
        """
        return tuple(tuple(name for name in axis if self.sizes[name] != 1) for axis in names)

    def shape(self, axes: Axes) -> tuple[int, ...]:
        """Return the shape of a tensor with these axes.

        Args:
            axes: Named axes.

        Returns:
            The product of the sizes of each axis.
        """
        return tuple(math.prod(self.sizes[name] for name in axis) for axis in axes)

    def through(self, nodes: Sequence[ir.Node], axes: Axes, broadcast: str | None = None) -> Axes:
        """Follow axes through layout operators.

        Args:
            nodes: Layout operators, each reading the result of the one before.
            axes: The axes of the first one's operand.
            broadcast: The factor that a BROADCAST_TO may add, once.

        Returns:
            The axes of the last one's result.

        Raises:
            MatchFailure: An operator mixes axes.
        """
        for node in nodes:
            if node.op_type == "TRANSPOSE":
                permutation = constant_ints(node.inputs[1])
                if permutation is None:
                    fail("a TRANSPOSE whose permutation is not constant", node.outputs[0])
                axes = tuple(axes[axis] for axis in permutation)
            elif node.op_type == "BROADCAST_TO":
                axes = self._broadcast(node, axes, broadcast)
            else:
                axes = self.regroup(axes, node.outputs[0])
        return axes

    def regroup(self, axes: Axes, value: ir.Value) -> Axes:
        """Return the axes of `value`, a row-major reshape of a tensor with these axes.

        Args:
            axes: The axes of the operand.
            value: The result of the reshape.

        Returns:
            The same factors in the same order, grouped to the shape of `value`.

        Raises:
            MatchFailure: The reshape splits a factor.
        """
        factors = [name for axis in axes for name in axis]
        grouped: list[tuple[str, ...]] = []
        for dim in shape_of(value):
            group: list[str] = []
            size = 1
            while size < dim and factors:
                name = factors.pop(0)
                group.append(name)
                size *= self.sizes[name]
            if size != dim:
                fail(f"a reshape cuts through the axes {axes}", value)
            grouped.append(tuple(group))
        if factors:
            fail(f"a reshape cuts through the axes {axes}", value)
        return tuple(grouped)

    def _broadcast(self, node: ir.Node, axes: Axes, factor: str | None) -> Axes:
        output = node.outputs[0]
        before, after = shape_of(node.inputs[0]), shape_of(output)  # type: ignore[arg-type]
        axes = ((),) * (len(after) - len(before)) + axes
        before = (1,) * (len(after) - len(before)) + before
        result = []
        for old, new, axis in zip(before, after, axes, strict=True):
            if old == new:
                result.append(axis)
            elif factor is not None and new == self.sizes[factor] and (factor,) not in result:
                result.append((factor,))
            else:
                fail(
                    f"a BROADCAST_TO from {list(before)} to {list(after)} that repeats no head group", output
                )
        return tuple(result)


def trace_layout(value: ir.Value) -> tuple[ir.Value, list[ir.Node]]:
    """Return the source of `value` before layout operators, and these operators from the source on.

    Args:
        value: Where to start.

    Returns:
        The source, and the nodes in order.
    """
    chain: list[ir.Node] = []
    while (node := producer_of(value, *LAYOUT_OPS)) is not None:
        chain.append(node)
        value = node.inputs[0]  # type: ignore[assignment]
    return value, chain[::-1]


def matmul_axes(node: ir.Node, lhs: Axes, rhs: Axes) -> Axes:
    """Return the axes of BATCH_MATMUL's result.

    Args:
        node: The BATCH_MATMUL.
        lhs: The axes of its left operand.
        rhs: The axes of its right operand.

    Returns:
        The axes of the result.

    Raises:
        MatchFailure: The operands differ in their batch axes, or in the axis that is summed.
    """
    if attribute(node, "adjointLhs"):
        lhs = (*lhs[:-2], lhs[-1], lhs[-2])
    if attribute(node, "adjointRhs"):
        rhs = (*rhs[:-2], rhs[-1], rhs[-2])
    output = node.outputs[0]
    if lhs[-1] != rhs[-2]:
        fail(f"BATCH_MATMUL sums over {lhs[-1]} on the left and {rhs[-2]} on the right", output)
    if lhs[:-2] != rhs[:-2]:
        fail(f"BATCH_MATMUL pairs the heads {lhs[:-2]} with {rhs[:-2]}", output)
    return (*lhs[:-1], rhs[-1])
