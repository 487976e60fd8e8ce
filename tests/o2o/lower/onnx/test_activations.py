"""Activations that are written in several ways become one operator; what only looks like one does not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from o2o.lower.onnx import lower_to_onnx
from o2o.lower.onnx.activations import Activation, activation_of
from o2o.model import Model
from o2o.rewriting.regions import Regions
from tests.o2o.graphs import Graph
from tests.o2o.lower.onnx.decoders import answers
from tests.o2o.lower.onnx.running import FORMS, Running, checked
from tests.o2o.lower.onnx.test_operators import with_operator
from tests.tolerances import assert_close

pytest.importorskip("onnxruntime")

Write = Callable[["Chain", ir.Value], ir.Value]


class Chain:
    """Arithmetic on vectors of 19 elements."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def __call__(self, op_type: str, *operands: ir.Value | float) -> ir.Value:
        values = [
            self.graph.constant("c", np.float32(x)) if isinstance(x, (int, float)) else x for x in operands
        ]
        return self.graph.op(op_type, values, [1, 1, 19])


def gpt2(op: Chain, x: ir.Value) -> ir.Value:
    cube = op("MUL", op("POW", x, 3.0), 0.044715)
    inner = op("TANH", op("MUL", op("ADD", x, cube), 0.7978845834732056))
    return op("MUL", op("MUL", x, 0.5), op("ADD", inner, 1.0))


def bloom(op: Chain, x: ir.Value) -> ir.Value:
    factor = op("ADD", op("MUL", op("MUL", x, 0.044715), x), 1.0)
    inner = op("TANH", op("MUL", op("MUL", x, 0.79788456), factor))
    return op("MUL", op("ADD", inner, 1.0), op("MUL", x, 0.5))


def silu(op: Chain, x: ir.Value) -> ir.Value:
    return op("MUL", op("LOGISTIC", x), x)


def silu_by_exp(op: Chain, x: ir.Value) -> ir.Value:
    return op("MUL", x, op("DIV", 1.0, op("ADD", op("EXP", op("NEG", x)), 1.0)))


def quick_gelu(op: Chain, x: ir.Value) -> ir.Value:
    return op("MUL", x, op("LOGISTIC", op("MUL", x, 1.702)))


ACTIVATIONS: dict[str, tuple[Write, str]] = {
    "GPT-2": (gpt2, "gelu_tanh"),
    "BLOOM": (bloom, "gelu_tanh"),
    "SiLU": (silu, "silu"),
    "SiLU by exp": (silu_by_exp, "silu"),
    "quick GELU": (quick_gelu, "quick_gelu"),
}


def vector(op: Chain) -> ir.Value:
    return op.graph.constant("vector", np.linspace(0.9, 1.1, 19, dtype=np.float32))


OTHERS: dict[str, Write] = {
    "another factor": lambda op, x: op("MUL", x, op("LOGISTIC", op("MUL", x, 1.5))),
    "of two values": lambda op, x: op("MUL", op("SIN", x), op("LOGISTIC", x)),
    "squared": lambda op, x: op("MUL", op("RELU", x), op("RELU", x)),
    "a constant for each element": lambda op, x: op("MUL", x, op("LOGISTIC", op("MUL", x, vector(op)))),
}


def activation(write: Write) -> tuple[Activation | None, ir.Value]:
    graph = Graph("main")
    x = graph.input("x", [1, 1, 19])
    y = write(Chain(graph), x)
    graph.output(y)
    node = y.producer()
    assert node is not None
    return activation_of(Regions(graph.ir), node), x


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_what_it_is(name: str) -> None:
    write, kind = ACTIVATIONS[name]
    actual, x = activation(write)
    assert actual == Activation(x, kind)


@pytest.mark.parametrize("name", OTHERS)
def test_what_it_is_not(name: str) -> None:
    assert activation(OTHERS[name])[0] is None


def model_of(write: Write) -> Model:
    """A decoder with the activation behind its logits."""
    return with_operator(lambda graph, x: write(Chain(graph), x))


@pytest.mark.parametrize("name", [*ACTIVATIONS, *OTHERS])
def test_in_onnx(name: str) -> None:
    write = ACTIVATIONS[name][0] if name in ACTIVATIONS else OTHERS[name]
    ids = [3, 1, 4]
    expected = answers(model_of(write), ids)
    for form in FORMS:
        running = Running(checked(model_of(write), form, logits="all"))
        assert_close(running.step(ids, 0)[0], expected)


def test_one_operator() -> None:
    for name, operator in {"GPT-2": "Gelu", "quick GELU": "QuickGelu"}.items():
        kinds = {node.op_type for node in lower_to_onnx(model_of(ACTIVATIONS[name][0]), "ort").graph}
        assert operator in kinds
        assert not {"Tanh", "Pow", "Sigmoid"} & kinds
