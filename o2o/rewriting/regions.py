"""Regions of a graph: the operators between one tensor and another.

A region computes `result` from `source` and from side operands (tables, constants). Evaluated on chosen
numbers (`o2o.operators.reference`), it shows which function it computes, in whatever operators it is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from o2o.formats.tensors import is_constant

MAX_NODES = 40


@dataclass(frozen=True)
class Region:
    """The operators that compute `result` from `source`.

    Attributes:
        result: The result.
        source: The one operand that all other operands are computed from.
        side_operands: Operands of the region that are neither constants nor computed from `source`.
        nodes: The operators, the last one first.
    """

    result: ir.Value
    source: ir.Value
    side_operands: tuple[ir.Value, ...]
    nodes: tuple[ir.Node, ...]


class Regions:
    """Regions of one graph, which must not change meanwhile."""

    def __init__(self, graph: ir.Graph) -> None:
        """Number the nodes.

        Args:
            graph: The graph.
        """
        self._order = {node: index for index, node in enumerate(graph)}

    def before(
        self,
        result: ir.Value,
        enters: Callable[[ir.Node], bool],
        is_side_operand: Callable[[ir.Value], bool] = lambda value: False,
    ) -> Iterator[Region]:
        """Find the regions that end at a value, the smallest first.

        Args:
            result: The result of the regions.
            enters: Whether a region may contain a node.
            is_side_operand: Whether a value is an operand of regions, without the nodes before it.

        Yields:
            Regions of up to `MAX_NODES` nodes.
        """
        frontier, side_operands, nodes = {result}, dict[ir.Value, None](), list[ir.Node]()
        for _ in range(MAX_NODES):
            node = max(frontier, key=self._position).producer()
            if node is None or not enters(node):
                return
            nodes.append(node)
            frontier.difference_update(node.outputs)
            for operand in node.inputs:
                if operand is None or is_constant(operand):
                    continue
                if is_side_operand(operand):
                    side_operands[operand] = None
                else:
                    frontier.add(operand)
            if not frontier:
                return
            if len(frontier) == 1:
                (source,) = frontier
                yield Region(result, source, tuple(side_operands), tuple(nodes))

    def _position(self, value: ir.Value) -> int:
        node = value.producer()
        return -1 if node is None else self._order[node]
