"""The reducer finds the cause of a failure, with a command that runs in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from o2o import formats
from o2o.model import Model, shape_of
from o2o.reduction.reducer import Reducer
from o2o.streams import open_file
from o2o.verifier.verify import verify
from tests.o2o.graphs import Graph, decoder, quantized, weights
from tests.o2o.language_model_graphs import language_model

Fails = Callable[[Model], bool]


class InProcess:
    """A `FailingCommand` that calls a function, and counts."""

    def __init__(self, fails: Fails) -> None:
        self.fails, self.runs = fails, 0

    def still_fails(self, path: Path) -> bool:
        self.runs += 1
        return self.fails(formats.load(path))


def reduced(model: Model, fails: Fails, folder: Path) -> tuple[Model, int]:
    command: Any = InProcess(fails)
    assert fails(model)
    reducer = Reducer(model, folder, command, 0, lambda _: None)
    reducer.run()
    result = formats.load(reducer.smallest)
    assert fails(result)
    assert reducer.operators == sum(len(graph) for graph in result.graphs)
    assert not [i for i in verify(open_file(reducer.smallest)) if i.severity == "error"]
    return result, command.runs


def nodes(model: Model) -> list[ir.Node]:
    return [node for graph in model.graphs for node in graph]


def deep(layers: int) -> Model:
    """Layers of FULLY_CONNECTED, ABS and a residual ADD; one LOGISTIC feeds a MUL in the middle."""
    graph = Graph("main")
    value = graph.input("x", [1, 16])
    for layer in range(layers):
        y = graph.fc(value, graph.constant(f"weight{layer}", weights(16, 16, seed=layer)), f"fc{layer}")
        y = graph.op("ABS", [y], [1, 16], name=f"abs{layer}")
        if layer == layers // 2:
            gate = graph.op("LOGISTIC", [y], [1, 16], name="gate")
            y = graph.op("MUL", [gate, y], [1, 16], name="gated")
        value = graph.op("ADD", [value, y], [1, 16], name=f"sum{layer}")
    graph.output(value)
    return graph.model()


def gate_feeds_product(model: Model) -> bool:
    return any(
        node.op_type == "LOGISTIC" and any(use.node.op_type == "MUL" for use in node.outputs[0].uses())
        for node in nodes(model)
    )


def test_two_operators_of_forty(tmp_path: Path) -> None:
    result, runs = reduced(deep(12), gate_feeds_product, tmp_path)
    assert [node.op_type for node in nodes(result)] == ["LOGISTIC", "MUL"]
    assert not result.graphs[0].inputs, "inputs became constants"
    assert all(np.prod(shape_of(value)) == 1 for node in nodes(result) for value in node.outputs)
    assert runs < 60


def test_one_signature_is_enough(tmp_path: Path) -> None:
    result, _ = reduced(decoder(), lambda m: any(n.op_type == "GATHER" for n in nodes(m)), tmp_path)
    assert len(result.graphs) == len(result.signatures) == 1
    assert [node.op_type for node in nodes(result)] == ["GATHER"]


def test_an_output_beside_others(tmp_path: Path) -> None:
    def two_tanh(model: Model) -> bool:
        return sum(node.op_type == "TANH" for node in nodes(model)) >= 2

    graph = Graph("main")
    x = graph.input("x", [4])
    for k in range(6):
        graph.output(graph.op("TANH" if k % 2 else "ABS", [x], [4], name=f"y{k}"))
    result, _ = reduced(graph.model(), two_tanh, tmp_path)
    assert [node.op_type for node in nodes(result)] == ["TANH", "TANH"]


@pytest.mark.parametrize("needs_weight", [False, True])
def test_weights_become_random_where_it_still_fails(needs_weight: bool, tmp_path: Path) -> None:
    graph = Graph("main")
    x = graph.input("x", [1, 3])
    special = weights(3, 3)
    special[0, 0] = 12345
    graph.output(
        graph.fc(graph.fc(x, graph.constant("a", special), "y"), graph.constant("b", weights(3, 3)), "z")
    )

    def fails(model: Model) -> bool:
        arrays = [v.const_value.numpy() for v in model.graphs[0].initializers.values()]  # type: ignore[union-attr]
        has_special = any(12345 in array for array in arrays)
        return len(nodes(model)) == 2 and (has_special or not needs_weight)

    result, _ = reduced(graph.model(), fails, tmp_path)
    a, b = (result.graphs[0].initializers[name].const_value.numpy() for name in "ab")  # type: ignore[union-attr]
    assert (12345 in a) == needs_weight
    assert not np.array_equal(b.ravel()[:1], weights(3, 3).ravel()[:1])


def test_dimensions_shrink_with_their_constants(tmp_path: Path) -> None:
    def reshapes(model: Model) -> bool:
        return any(node.op_type == "RESHAPE" and len(shape_of(node.outputs[0])) == 3 for node in nodes(model))

    graph = Graph("main")
    x = graph.input("x", [1, 40])
    y = graph.op(
        "RESHAPE", [x, graph.constant("shape", np.int32([1, 40, 1]))], [1, 40, 1], newShape=[1, 40, 1]
    )
    graph.output(y)
    result, _ = reduced(graph.model(), reshapes, tmp_path)
    assert shape_of(nodes(result)[0].outputs[0]) == (1, 1, 1)


def test_quantized_weights_and_roles(tmp_path: Path) -> None:
    result, _ = reduced(quantized(), lambda m: any(n.op_type == "DEQUANTIZE" for n in nodes(m)), tmp_path)
    assert [node.op_type for node in nodes(result)] == ["DEQUANTIZE"]

    def has_contract(model: Model) -> bool:
        return any("role" in v.meta for s in model.signatures for v in s.inputs.values())

    result, _ = reduced(language_model(), has_contract, tmp_path)
    assert has_contract(result)
    assert len(nodes(result)) == 1
