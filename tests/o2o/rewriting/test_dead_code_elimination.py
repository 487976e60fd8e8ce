"""Dead nodes are removed in any order; those with side effects is not dead."""

from __future__ import annotations

from o2o.rewriting.dead_code_elimination import live_nodes, remove_dead_constants, remove_dead_nodes
from tests.o2o.graphs import Graph, weights


def test_dead_nodes_go_in_any_order() -> None:
    graph = Graph("main")
    x = graph.input("x", [1])
    y = graph.op("ABS", [x], [1], name="y")
    graph.op("NEG", [graph.op("NEG", [y], [1])], [1])
    graph.output(y)
    graph.ir.extend(list(graph.ir)[::-1])
    assert live_nodes(graph.ir) == {y.producer()}
    assert remove_dead_nodes(graph.ir) == 2
    assert [node.op_type for node in graph.ir] == ["ABS"]
    assert remove_dead_nodes(graph.ir) == 0


def test_a_node_of_which_one_result_is_used_stays() -> None:
    graph = Graph("main")
    x = graph.input("x", [2])
    first, second = graph.value("a", [1]), graph.value("b", [1])
    graph.node("SPLIT", [graph.constant("axis", weights(1)), x], [first, second])
    graph.output(second)
    assert remove_dead_nodes(graph.ir) == 0


def test_constants() -> None:
    graph = Graph("main")
    x = graph.input("x", [4])
    used, graph_output, scales = (
        graph.constant(name, weights(4)) for name in ("used", "graph_output", "scales")
    )
    dead, of_dead = graph.constant("dead", weights(4)), graph.constant("of_dead", weights(4))
    used.meta["quantization_constants"] = {"scales": scales}
    dead.meta["quantization_constants"] = {"scales": of_dead}
    graph.output(graph.op("ADD", [x, used], [4]), graph_output)
    assert remove_dead_constants(graph.ir) == 2
    assert list(graph.ir.initializers) == ["used", "graph_output", "scales"]
