"""Equal nodes become one; nodes that only look equal do not."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings

from o2o import formats
from o2o.contract import Role
from o2o.model import CUSTOM_DOMAIN, Model
from o2o.rewriting.common_subexpression_elimination import eliminate_common_subexpressions
from o2o.rewriting.dead_code_elimination import remove_dead_constants, remove_dead_nodes
from tests.o2o import graphs
from tests.o2o.graphs import Graph, assert_same_results, feeds, float_models, operators, resource


@settings(max_examples=60, deadline=None)
@given(model=float_models())
def test_nothing_changes_but_the_work(model: Model) -> None:
    data = formats.dumps(model)
    before, after = formats.loads(data), formats.loads(data)
    graph = after.graphs[0]
    count = eliminate_common_subexpressions(after, graph)
    assert len(before.graphs[0]) - len(graph) == count
    remove_dead_nodes(graph)
    remove_dead_constants(graph)
    assert eliminate_common_subexpressions(after, graph) == 0
    given_ = feeds(before)
    assert_same_results(graphs.run(before, given_), graphs.run(formats.loads(formats.dumps(after)), given_))


def twice(op_type: str, **attributes: int) -> tuple[Graph, ir.Value, ir.Value]:
    graph = Graph("main")
    x = graph.input("x", [2])
    a, b = (graph.op(op_type, [x], [2], name=name, **attributes) for name in "ab")
    return graph, a, b


def test_equal_nodes_and_what_hangs_on_them_become_one() -> None:
    graph, a, b = twice("NEG")
    c, d = (graph.op("ADD", [v, graph.constant("one", np.float32([1]))], [2]) for v in (a, b))
    graph.output(graph.op("MUL", [c, d], [2]))
    assert eliminate_common_subexpressions(graph.model(), graph.ir) == 2
    assert operators(graph.model()) == {"NEG": 1, "ADD": 1, "MUL": 1}


@pytest.mark.parametrize("graph_output", ["a", "b"])
def test_a_value_that_is_given_out_keeps_its_name_and_role(graph_output: str) -> None:
    graph, a, b = twice("NEG")
    value = {"a": a, "b": b}[graph_output]
    value.meta["role"] = Role("logits")
    graph.output(value, graph.op("MUL", [a, b], [2], name="y"))
    model = graph.model()
    assert eliminate_common_subexpressions(model, graph.ir) == 1
    after = formats.loads(formats.dumps(model))
    assert [v.name for v in after.graphs[0].outputs] == [graph_output, "y"]
    assert after.graphs[0].outputs[0].meta["role"] == Role("logits")
    assert after.signatures[0].outputs[graph_output] is after.graphs[0].outputs[0]
    assert list(graphs.run(after, {"x": np.float32([2, 3])})["y"]) == [4, 9]


def test_two_that_are_given_out_stay_two() -> None:
    graph, a, b = twice("NEG")
    graph.output(a, b)
    model = graph.model()
    assert eliminate_common_subexpressions(model, graph.ir) == 0
    assert list(graphs.run(model, {"x": np.float32([2, 3])})) == ["a", "b"]


def look_alikes() -> dict[str, Graph]:
    """Graphs of two nodes with the same operands that must stay two."""
    actual = {}
    graph, a, b = twice("QUANTIZE")
    for value, scale in ((a, 0.5), (b, 0.25)):
        value.type = ir.TensorType(ir.DataType.INT8)
        value.meta["fields"] = {"quantization": graphs.per_channel([scale])}
    actual["quantized with different scales"] = graph

    graph, a, b = twice("CAST", inDataType=0, outDataType=2)
    a.type = ir.TensorType(ir.DataType.INT32)
    actual["cast to different dtypes"] = graph

    graph, a, b = twice("GATHER")
    actual["other options"] = graph
    b.producer().attributes["axis"] = ir.AttrInt64("axis", 1)  # type: ignore[union-attr]

    graph = Graph("main")
    x = graph.input("x", [2])
    values = [graph.value(name, [2]) for name in "ab"]
    for value, options in zip(values, (b"\1", b"\2"), strict=True):
        node = graph.node("MyOp", [x], [value], domain=CUSTOM_DOMAIN)
        node.meta["fields"] = {"customOptions": np.frombuffer(options, np.uint8)}
    actual["custom options"] = graph

    graph, a, b = twice("RANDOM_UNIFORM")
    actual["random numbers"] = graph

    graph = Graph("main")
    x, handle = graph.input("x", [2]), resource(graph, "handle")
    graph.node("VAR_HANDLE", [], [handle])
    values = [graph.value(name, [2]) for name in "ab"]
    graph.node("READ_VARIABLE", [handle], [values[0]])
    graph.node("ASSIGN_VARIABLE", [handle, x], [])
    graph.node("READ_VARIABLE", [handle], [values[1]])
    actual["a variable before and after"] = graph

    graph = Graph("main")
    x = graph.input("x", [1, 2, 4])
    cache = graph.input("cache", [1, 2, 4, 2])
    operands = [x, *[graph.constant("w", np.ones((4, 4), np.float32))] * 4, None, None, None, cache, cache]
    values = [graph.op("ATTENTION", operands, [1, 2, 4]) for _ in range(2)]
    actual["attention that writes"] = graph

    for graph in actual.values():
        nodes = [node for node in graph.ir if node.outputs]
        graph.output(graph.op("ADD", [node.outputs[0] for node in nodes[-2:]], [2]))
    return actual


@pytest.mark.parametrize("which", look_alikes())
def test_what_only_looks_equal_stays(which: str) -> None:
    graph = look_alikes()[which]
    count = len(graph.ir)
    assert eliminate_common_subexpressions(graph.model(), graph.ir) == 0
    assert len(graph.ir) == count


def test_constants_are_equal_by_number_and_kind() -> None:
    """float 0 and int 0 are the same bytes; so are [2, 1] and [1, 2] of zeros."""
    graph = Graph("main")
    arrays = [np.zeros(2, np.float32), np.zeros(2, np.int32), np.zeros((1, 2), np.float32)]
    values = [graph.constant("zero", array) for array in arrays]
    quantized = graph.constant("zero", arrays[0])
    quantized.meta["fields"] = {"quantization": graphs.per_channel([0.5])}
    for value in (*values, quantized):
        graph.output(graph.op("NEG", [value], list(value.shape.numpy())))  # type: ignore[union-attr]
    assert eliminate_common_subexpressions(graph.model(), graph.ir) == 0
    assert [node.inputs[0] for node in graph.ir] == [*values, quantized]


def test_large_constants_are_not_compared() -> None:
    graph = Graph("main")
    x = graph.input("x", [1, 200])
    weights = [graph.constant("w", np.ones((200, 200), np.float32)) for _ in range(2)]
    graph.output(*(graph.fc(x, w, "y") for w in weights))
    assert eliminate_common_subexpressions(graph.model(), graph.ir) == 0
