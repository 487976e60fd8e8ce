"""Forward data flow in ONNX: which operators an input reaches, also through the branches of If.

A branch uses values of the graphs around it without taking them as inputs, and its outputs are those of the
`If`. So a value inside a branch is followed like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import onnx_ir as ir

from o2o.model import inner_graphs

Use = tuple[ir.Node, int]
"""A node, and the number of an operand."""
Follow = Callable[[ir.Node, int], Iterable[int]]
"""Given a node and an operand: the numbers of the results to go on with."""


class ForwardFlow:
    """The uses of the values of one main graph."""

    def __init__(self, graph: ir.Graph) -> None:
        """Note which results each output of a branch becomes.

        Args:
            graph: The main graph.
        """
        self.graph = graph
        self._results: dict[ir.Value, list[ir.Value]] = {}
        for node in graph.all_nodes():
            if node.op_type == "If":
                for branch in inner_graphs(node):
                    for inner, outer in zip(branch.outputs, node.outputs, strict=False):
                        self._results.setdefault(inner, []).append(outer)

    def reached(self, start: ir.Value, follow: Follow) -> Iterator[ir.Value]:
        """Yield the values that a value reaches, itself included.

        Args:
            start: The value.
            follow: Where to go on.

        Yields:
            Each value once, the nearest first.
        """
        seen, pending = {start}, [start]
        for value in pending:
            yield value
            following = [*self._results.get(value, ())]
            for node, operand in value.uses():
                following += [node.outputs[index] for index in follow(node, operand)]
            for one in following:
                if one not in seen:
                    seen.add(one)
                    pending.append(one)

    def uses(self, start: ir.Value, follow: Follow) -> Iterator[Use]:
        """Yield the uses of a value, and of the values that it reaches.

        Args:
            start: The value.
            follow: Where to go on.

        Yields:
            Each node and operand.
        """
        for value in self.reached(start, follow):
            yield from value.uses()
