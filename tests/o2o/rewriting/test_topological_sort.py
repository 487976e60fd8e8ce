"""Producers come before users, and nodes move only if they must."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from o2o.errors import ModelError
from o2o.model import Model
from o2o.rewriting.topological_sort import topological_sort
from tests.o2o.graphs import Graph, assert_same_results, conditional, feeds, float_models, run


def chain(length: int) -> ir.Graph:
    graph = Graph("main")
    value = graph.input("x", [1])
    for index in range(length):
        value = graph.op("ABS", [value], [1], name=f"v{index}")
    graph.output(value)
    return graph.ir


def names(graph: ir.Graph) -> list[str | None]:
    return [node.outputs[0].name for node in graph]


def test_a_graph_in_order_stays() -> None:
    graph = chain(4)
    assert not topological_sort(graph)
    assert names(graph) == ["v0", "v1", "v2", "v3"]


def test_a_producer_moves_to_its_first_user() -> None:
    graph = chain(3)
    other = ir.Node("circle", "NEG", [graph.inputs[0]], outputs=[ir.Value(name="late")])
    graph.append(other)
    graph[1].replace_input_with(0, other.outputs[0])
    assert topological_sort(graph)
    assert names(graph) == ["v0", "late", "v1", "v2"]


def test_a_long_chain_backwards() -> None:
    graph = chain(3000)
    graph.extend(list(graph)[::-1])
    assert topological_sort(graph)
    assert names(graph) == [f"v{index}" for index in range(3000)]


def test_operators_that_run_the_same_graph() -> None:
    """onnx_ir's own sort takes the nodes of a shared branch for a cycle."""
    model = conditional()
    main = model.graphs[0]
    first = main[0]
    result = ir.Value(name="second", shape=ir.Shape([3]), type=ir.TensorType(ir.DataType.FLOAT))
    attributes = [ir.AttrGraph(a.name, a.as_graph()) for a in first.attributes.values()]
    main.append(ir.Node("circle", "IF", [main.inputs[0], first.outputs[0]], attributes, outputs=[result]))
    main.outputs[0] = result
    main.extend([main[1], main[0]])
    assert topological_sort(main)
    assert names(main) == ["y", "second"]


def test_a_cycle() -> None:
    graph = chain(3)
    graph[0].replace_input_with(0, graph[2].outputs[0])
    with pytest.raises(ModelError, match="ABS v1 depends on its own result, through v0"):
        topological_sort(graph)


@given(float_models(), st.randoms())
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_order_is_mended(model: Model, random: object) -> None:
    given = feeds(model)
    before = run(model, given)
    nodes = list(model.graphs[0])
    random.shuffle(nodes)  # type: ignore[attr-defined]
    model.graphs[0].extend(nodes)
    topological_sort(model.graphs[0])
    assert set(model.graphs[0]) == set(nodes)
    assert_same_results(before, run(model, given))
