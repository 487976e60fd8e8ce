"""GELU, in whichever operators it is written, is one operator on LiteRT; other activations stay."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from o2o import formats
from o2o.lower.litert import lower_to_litert
from o2o.model import Model
from o2o.operators import reference
from tests.o2o.graphs import Graph, operators, run
from tests.o2o.rewriting.test_activations import ACTIVATIONS, OTHERS, Chain, Write
from tests.tolerances import assert_close

GELUS = [name for name, (_, kind) in ACTIVATIONS.items() if kind == "gelu_tanh"]


def model_of(write: Write) -> Model:
    graph = Graph("main")
    graph.output(write(Chain(graph), graph.input("x", [1, 1, 19])))
    return graph.model()


def lowered(make: Callable[[], Model]) -> Model:
    """The model for LiteRT, which computes the same."""
    before, after = make(), formats.loads(formats.dumps(lower_to_litert(make())))
    feeds = {name: np.linspace(-6, 6, 19, dtype=np.float32).reshape(1, 1, 19) for name in ("x",)}
    expected = reference.run_graph(before.graphs[0], feeds)
    actual = run(after, feeds)
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert_close(actual[name], array)
    return after


@pytest.mark.parametrize("name", GELUS)
def test_gelu_is_one_operator(name: str) -> None:
    after = lowered(lambda: model_of(ACTIVATIONS[name][0]))
    assert operators(after) == {"GELU": 1}
    (node,) = after.graphs[0]
    assert node.attributes["approximate"].value


UNREAD = [name for name in OTHERS if "in a checkpoint" in name]


@pytest.mark.parametrize("name", [name for name in (*ACTIVATIONS, *OTHERS) if name not in (*GELUS, *UNREAD)])
def test_others_stay(name: str) -> None:
    write = ACTIVATIONS[name][0] if name in ACTIVATIONS else OTHERS[name]
    after = lowered(lambda: model_of(write))
    assert operators(after).keys() == operators(model_of(write)).keys()


@pytest.mark.parametrize("name", UNREAD)
def test_weights_are_not_read(name: str) -> None:
    after = lower_to_litert(model_of(OTHERS[name]))
    assert operators(after) == operators(model_of(OTHERS[name]))


def test_gelu_of_gelu() -> None:
    gelu = ACTIVATIONS["GPT-2"][0]
    after = lowered(lambda: model_of(lambda op, x: gelu(op, gelu(op, x))))
    assert operators(after) == {"GELU": 2}


def test_values_inside_that_others_use_are_computed() -> None:
    def model() -> Model:
        graph = Graph("main")
        y = ACTIVATIONS["GPT-2"][0](Chain(graph), graph.input("x", [1, 1, 19]))
        (tanh,) = (node for node in graph.ir if node.op_type == "TANH")
        graph.output(y, tanh.outputs[0])
        return graph.model()

    assert operators(lowered(model))["TANH"] == 1
    assert operators(lowered(model))["GELU"] == 1


def test_reshaped_on_the_way() -> None:
    def model() -> Model:
        graph = Graph("main")
        op, x = Chain(graph), graph.input("x", [1, 1, 19])
        rows = graph.op("RESHAPE", [x, graph.constant("shape", np.int32([19, 1]))], [19, 1])
        half = graph.op("MUL", [rows, graph.constant("half", np.float32(0.5))], [19, 1])
        back = graph.op("RESHAPE", [half, graph.constant("shape", np.int32([1, 1, 19]))], [1, 1, 19])
        cube = op("MUL", op("MUL", op("MUL", x, x), x), 0.044715)
        inner = op("TANH", op("MUL", op("ADD", x, cube), 0.7978845834732056))
        graph.output(op("MUL", back, op("ADD", inner, 1.0)))
        return graph.model()

    assert operators(lowered(model)) == {"GELU": 1}
