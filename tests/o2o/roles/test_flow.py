"""Backward data flow, also through the graph of a composite."""

from __future__ import annotations

import onnx_ir as ir

from o2o.roles.flow import Point, all_operands, graph_inputs, origin, sources, steps
from tests.o2o.graphs import Graph


def with_composite() -> tuple[Graph, list[ir.Value]]:
    """Two calls of one graph, which negates: y = -(-x) and z = -other."""
    inner = Graph("negate")
    a = inner.input("a", [2])
    inner.output(inner.op("NEG", [a], [2]))
    outer = Graph("main")
    x, other = outer.input("x", [2]), outer.input("other", [2])

    def call(operand: ir.Value) -> ir.Value:
        result = outer.op("STABLEHLO_COMPOSITE", [operand], [2])
        node = result.producer()
        assert node is not None
        attribute = ir.Attr("decompositionSubgraphIndex", ir.AttributeType.GRAPH, inner.ir)
        node.attributes.add(attribute)
        return result

    results = [call(call(x)), call(other)]
    outer.output(*results)
    return outer, results


def test_each_call_has_its_own_operands() -> None:
    graph, (y, z) = with_composite()
    assert [step.node.op_type for step in steps(graph.ir)] == ["NEG"] * 3
    reached = sources([Point(y)], all_operands)
    assert graph_inputs(reached) == [graph.ir.inputs[0]]
    assert len([step for step in reached.values() if step is not None]) == 2
    assert graph_inputs(sources([Point(z), None], all_operands)) == [graph.ir.inputs[1]]


def test_the_origin_is_where_an_operator_computes_the_value() -> None:
    graph, (_, z) = with_composite()
    point = origin(Point(z))
    assert point.value.producer().op_type == "NEG"  # type: ignore[union-attr]
    assert len(point.calls) == 1
    assert origin(Point(point.calls[0].inputs[0], ())).value is graph.ir.inputs[1]  # type: ignore[arg-type]
