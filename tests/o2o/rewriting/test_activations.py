"""Activations that are written in several ways are recognized; what only looks like one is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from o2o.formats.unbound_tensor import UnboundTensor
from o2o.rewriting.activations import Activation, activation_of
from o2o.rewriting.regions import Regions
from tests.o2o.graphs import Graph

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


def reference(op: Chain) -> ir.Value:
    """A vector that is not in the model."""
    value = vector(op)
    value.const_value = UnboundTensor("w", Path("no-checkpoint"), "w", ir.DataType.FLOAT, (19,))
    return value


OTHERS: dict[str, Write] = {
    "another factor": lambda op, x: op("MUL", x, op("LOGISTIC", op("MUL", x, 1.5))),
    "of two values": lambda op, x: op("MUL", op("SIN", x), op("LOGISTIC", x)),
    "squared": lambda op, x: op("MUL", op("RELU", x), op("RELU", x)),
    "a constant for each element": lambda op, x: op("MUL", x, op("LOGISTIC", op("MUL", x, vector(op)))),
}
REFERENCES: dict[str, Write] = {
    "of weights in a checkpoint": lambda op, x: op("MUL", x, op("LOGISTIC", op("MUL", x, reference(op)))),
    "a product with weights in a checkpoint": lambda op, x: op("MUL", op("LOGISTIC", x), reference(op)),
}
"""Cannot be computed: their weights are not in the model."""


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


@pytest.mark.parametrize("name", [*OTHERS, *REFERENCES])
def test_what_it_is_not(name: str) -> None:
    assert activation((OTHERS | REFERENCES)[name])[0] is None
