"""Regions: the operators between a tensor and the one that it is computed from."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from o2o.rewriting.regions import Regions
from tests.o2o.graphs import Graph


def example() -> tuple[Graph, dict[str, ir.Value]]:
    """out = sin(x) * (sin(x) + side) over two layers, with a side operand."""
    graph = Graph("main")
    x, side = graph.input("x", [3]), graph.input("side", [3])
    moved = graph.op("NEG", [side], [3], name="moved")
    sine = graph.op("SIN", [x], [3], name="sine")
    total = graph.op("ADD", [sine, moved], [3], name="total")
    scaled = graph.op("MUL", [total, graph.constant("two", np.float32(2))], [3], name="scaled")
    out = graph.op("MUL", [sine, scaled], [3], name="out")
    graph.output(out)
    return graph, {value.name or "": value for value in (x, side, moved, sine, total, scaled, out)}


def test_the_smallest_first() -> None:
    graph, values = example()
    regions = Regions(graph.ir).before(
        values["out"], lambda node: True, lambda value: value is values["moved"]
    )
    found = [(region.source.name, [v.name for v in region.side_operands]) for region in regions]
    assert found == [("sine", ["moved"]), ("x", ["moved"])]


def test_without_side_operands_all_inputs_count() -> None:
    graph, values = example()
    assert list(Regions(graph.ir).before(values["out"], lambda node: True)) == []


def test_nodes_that_are_not_entered_end_it() -> None:
    graph, values = example()
    regions = Regions(graph.ir).before(
        values["out"], lambda node: node.op_type != "SIN", lambda value: value is values["moved"]
    )
    assert [region.source.name for region in regions] == ["sine"]
