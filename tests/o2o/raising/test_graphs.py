"""A raised graph: its values, and ONNX nodes that stay."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from o2o.errors import ModelError
from o2o.formats.onnx_reader import decode
from o2o.raising import raise_graph
from tests.o2o.raising.evaluation import assert_same, operators, parsed

NODES = "a = Neg (x) b = NonZero (a) c = Abs (a) d = Cast <to = 1> (b) y = Add (c, w)"


def graph_of(inputs: str, outputs: str, nodes: str, constants: str = "") -> ir.Graph:
    return decode(parsed(inputs, outputs, nodes, constants=constants), [], None).graphs[0]


def test_each_value_has_its_counterpart() -> None:
    """So that what is matched on the raised graph can be found in the ONNX graph."""
    graph = graph_of("float[2,3] x", "float[2,3] y", NODES, "float[3] w = {1, 2, 3}")
    result = raise_graph(graph)
    by_name = {value.name: value for value in (*graph.inputs, *(v for node in graph for v in node.outputs))}
    for name in ("x", "a", "c", "y"):
        raised = result.values[by_name[name]]
        assert raised.name == name
        assert result.origins[raised] is by_name[name]
    (add,) = (node for node in result.graph if node.op_type == "ADD")
    assert result.origins[add.inputs[1]] is graph.initializers["w"]
    assert [node.op_type for node in graph] == ["Neg", "NonZero", "Abs", "Cast", "Add"]  # it stays as it is


def test_nodes_without_a_counterpart_stay() -> None:
    graph = graph_of("float[2,3] x", "float[2,3] y, float[2,N] d", NODES, "float[3] w = {1, 2, 3}")
    result = raise_graph(graph)
    assert [node.op_type for node in result.graph] == ["NEG", "NonZero", "ABS", "Cast", "ADD"]
    assert [(each.node.op_type, each.reason) for each in result.unsupported] == [
        ("NonZero", "Circle has no such operator")
    ]


def test_symbolic_dimensions_get_numbers() -> None:
    graph = graph_of("float[B,T] x, float[B,P] z", "float[B,N] y", "y = Concat <axis = 1> (x, z)")
    result = raise_graph(graph, {"B": 1, "T": 2, "P": 3})
    assert tuple(result.graph.outputs[0].shape.numpy()) == (1, 5)  # type: ignore[union-attr]
    with pytest.raises(ModelError, match=r"x has the shape \[B,T\]: fix.shape.py"):
        raise_graph(graph)


def test_the_branch_of_a_constant_condition() -> None:
    nodes = """
        s = Shape (x) n = Gather (s, i) c = Equal (n, three)
        y = If (c) <
            then_branch = t () => (float[2,3] u) { u = Neg (x) },
            else_branch = e () => (float[2,3] v) { v = Abs (x) }
        >
    """
    model = assert_same(
        parsed("float[2,3] x", "float[2,3] y", nodes, constants="int64 i = {1}, int64 three = {3}")
    )
    assert operators(model) == ["NEG"]


def test_weights_are_no_operands_of_folding() -> None:
    """A product of two weights is computed when the model runs: its numbers may not be there yet."""
    size = 1200
    numbers = ", ".join(["1"] * size)
    model = assert_same(
        parsed(
            "float[1] x",
            f"float[{size}] y",
            "a = Mul (w, w) y = Mul (a, x)",
            constants=f"float[{size}] w = {{{numbers}}}",
        )
    )
    assert operators(model) == ["MUL", "MUL"]
