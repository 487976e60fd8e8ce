"""Backward data flow through a graph and through the graphs that its operators call.

A `Point` is a value and the calls on the way to it: a composite's graph may run several times, each time with
other operands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import onnx_ir as ir

from o2o.model import inner_graphs

CALLS = ("STABLEHLO_COMPOSITE", "CALL")
"""Operators that run one graph, once, on their own operands."""


class Point(NamedTuple):
    """A value as one run of a graph computes it.

    Attributes:
        value: The value.
        calls: The operators whose graph it belongs to, the outermost first; empty in the main graph.
    """

    value: ir.Value
    calls: tuple[ir.Node, ...] = ()


class Step(NamedTuple):
    """An operator as one run of a graph executes it."""

    node: ir.Node
    calls: tuple[ir.Node, ...] = ()

    def operand(self, index: int) -> Point | None:
        """Return an operand.

        Args:
            index: Its number.

        Returns:
            The operand; None if it is absent.
        """
        value = self.node.inputs[index] if index < len(self.node.inputs) else None
        return None if value is None else origin(Point(value, self.calls))

    def operands(self) -> Iterator[tuple[int, Point]]:
        """Yield the operands that are present.

        Yields:
            The number of each, and the operand.
        """
        for index in range(len(self.node.inputs)):
            if (point := self.operand(index)) is not None:
                yield index, point


def called_graph(node: ir.Node) -> ir.Graph | None:
    """Return the graph that an operator calls.

    Args:
        node: Any node.

    Returns:
        The graph; None for an operator that is no call.
    """
    return next(inner_graphs(node), None) if node.op_type in CALLS else None


def steps(graph: ir.Graph, calls: tuple[ir.Node, ...] = ()) -> Iterator[Step]:
    """Yield the operators of a graph in their order, those of called graphs in place of the call.

    Args:
        graph: The graph.
        calls: The calls that lead to it.

    Yields:
        Each operator.
    """
    for node in graph:
        inner = called_graph(node)
        if inner is None:
            yield Step(node, calls)
        elif node not in calls:
            yield from steps(inner, (*calls, node))


def origin(point: Point) -> Point:
    """Follow a value through the borders of called graphs.

    Args:
        point: A value.

    Returns:
        The same numbers at the place where an operator computes them; else an input of the main graph, or a
        constant.
    """
    while True:
        value, calls = point
        producer = value.producer()
        if producer is not None and (inner := called_graph(producer)) is not None and producer not in calls:
            point = Point(inner.outputs[value.index() or 0], (*calls, producer))
        elif producer is None and calls and value.is_graph_input():
            (*outer, call) = calls
            inner = called_graph(call)
            assert inner is not None
            index = [*inner.inputs].index(value)
            operand = call.inputs[index] if index < len(call.inputs) else None
            if operand is None:
                return point
            point = Point(operand, tuple(outer))
        else:
            return point


def producer(point: Point) -> Step | None:
    """Return the operator that computes a value.

    Args:
        point: A value, as `origin` returns it.

    Returns:
        The operator; None for an input or constant.
    """
    node = point.value.producer()
    return None if node is None else Step(node, point.calls)


def sources(
    start: Iterable[Point | None], follow: Callable[[Step], Iterable[int]]
) -> dict[Point, Step | None]:
    """Return the values that some values are computed from.

    Args:
        start: The values; None is skipped.
        follow: The operands of an operator to go on with; none stops there.

    Returns:
        Each value on the way, the start included, and the operator that computes it.
    """
    seen: dict[Point, Step | None] = {}
    pending = [origin(point) for point in start if point is not None]
    while pending:
        point = pending.pop()
        if point in seen:
            continue
        seen[point] = step = producer(point)
        if step is not None:
            pending += [operand for index in follow(step) if (operand := step.operand(index)) is not None]
    return seen


def all_operands(step: Step) -> Iterable[int]:
    """Follow every operand; for `sources`.

    Args:
        step: Any operator.

    Returns:
        The numbers of its operands.
    """
    return range(len(step.node.inputs))


def graph_inputs(points: Iterable[Point]) -> list[ir.Value]:
    """Return the inputs of the main graph among some values.

    Args:
        points: The values.

    Returns:
        Each input once, in their order.
    """
    inputs = (point.value for point in points if not point.calls and point.value.is_graph_input())
    return list(dict.fromkeys(inputs))
