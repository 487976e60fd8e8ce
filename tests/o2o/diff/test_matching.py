"""Operators correspond although others were inserted, removed or renamed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from o2o.diff.matching import match_graphs
from tests.o2o.graphs import Graph, weights


def chain(operators: Sequence[str], names: Sequence[str] | None = None) -> Graph:
    """Operators of one operand, one after the other."""
    graph = Graph("main")
    value = graph.input("x", [4])
    for index, operator in enumerate(operators):
        value = graph.op(operator, [value], [4], name=names[index] if names else f"t{index}")
    graph.output(value)
    return graph


def pairs(first: Graph, second: Graph) -> Mapping[int, int]:
    """The places of operators that match."""
    known = [*zip(first.ir.inputs, second.ir.inputs, strict=True)]
    known += zip(first.ir.outputs, second.ir.outputs, strict=True)
    nodes = match_graphs(first.ir, second.ir, known).nodes
    places = [{node: index for index, node in enumerate(graph.ir)} for graph in (first, second)]
    return {places[0][a]: places[1][b] for a, b in nodes.items()}


@pytest.mark.parametrize("inserted", range(6))
def test_an_inserted_operator_shifts_nothing(inserted: int) -> None:
    """Tensors are numbered, so every name behind the insertion names another operator."""
    before = ["ABS"] * 5
    after = [*before[:inserted], "NEG", *before[inserted:]]
    expected = {k: k + (k >= inserted) for k in range(5)}
    assert pairs(chain(before), chain(after)) == expected
    assert pairs(chain(after), chain(before)) == {b: a for a, b in expected.items()}


def layered(layers: int, insert: bool, numbered: bool) -> Graph:
    """In each layer: a product with a weight of its own, and an ABS; with `insert` a NEG between."""
    graph = Graph("main")
    value = graph.input("x", [1, 64])
    for layer in range(layers):
        weight = graph.constant(f"layers.{layer}.weight", weights(64, 64, seed=layer))
        value = graph.fc(value, weight, "" if numbered else f"fc{layer}")
        if insert:
            value = graph.op("NEG", [value], [1, 64], name=None if numbered else f"neg{layer}")
        value = graph.op("ABS", [value], [1, 64], name=None if numbered else f"abs{layer}")
    graph.output(value)
    for number, node in enumerate(graph.ir):
        if numbered:
            node.outputs[0].name = f"tensor_{number}"
    return graph


@pytest.mark.parametrize("numbered", [False, True])
def test_an_insertion_in_every_layer(numbered: bool) -> None:
    found = pairs(layered(5, False, numbered), layered(5, True, numbered))
    assert found == {2 * k + j: 3 * k + 2 * j for k in range(5) for j in (0, 1)}


def test_an_operator_of_another_kind_does_not_match() -> None:
    assert pairs(chain(["ABS", "NEG", "ABS"]), chain(["ABS", "TANH", "ABS"])) == {0: 0, 2: 2}


def test_twins_match_by_their_names() -> None:
    def twins(names: Sequence[str]) -> Graph:
        graph = Graph("main")
        x = graph.input("x", [4])
        both = {name: graph.op("ABS", [x], [4], name=name) for name in names}
        graph.output(graph.op("SUB", [both["a"], both["b"]], [4], name="y"))
        return graph

    assert pairs(twins(["a", "b"]), twins(["b", "a"])) == {0: 1, 1: 0, 2: 2}


def test_tensors_correspond() -> None:
    graphs = []
    for name in ("one", "other"):
        graph = Graph("main")
        x = graph.input("x", [2])
        graph.output(graph.op("ADD", [x, graph.constant(name, np.float32([1, 2]))], [2], name="y"))
        graphs.append(graph.ir)
    values = match_graphs(*graphs, [(graphs[0].inputs[0], graphs[1].inputs[0])]).values
    assert {(a.name, b.name) for a, b in values.items()} == {("x", "x"), ("y", "y"), ("one", "other")}
