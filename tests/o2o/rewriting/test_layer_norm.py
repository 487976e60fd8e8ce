"""LayerNorm in the forms that exporters write, and what only looks like one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from o2o.rewriting.layer_norm import LayerNorm, match_layer_norm
from o2o.rewriting.matchers import MatchFailure
from tests.o2o.graphs import Graph

D, SHAPE, COLUMN = 6, [1, 2, 6], [1, 2, 1]


def norm(
    *,
    square: str = "MUL",
    root: str = "RSQRT",
    weight: bool = True,
    bias: bool = True,
    epsilon: float = 1e-5,
    mean_of: str = "x",
    axis: int = -1,
    weight_shape: tuple[int, ...] = (D,),
) -> tuple[Graph, ir.Value]:
    """A graph that ends with the norm of its input x."""
    graph = Graph("main")
    x, other = graph.input("x", SHAPE), graph.input("other", SHAPE)
    axes = graph.constant("axes", np.int32([axis]))
    column = COLUMN if axis in (-1, 2) else [1, 1, D]
    mean = graph.op("MEAN", [x if mean_of == "x" else other, axes], column, keepDims=True)
    deviation = graph.op("SUB", [x, mean], SHAPE)
    match square:
        case "MUL":
            squared = graph.op("MUL", [deviation, deviation], SHAPE)
        case "POW":
            squared = graph.op("POW", [deviation, graph.constant("two", np.float32(2))], SHAPE)
        case "SQUARED_DIFFERENCE":
            squared = graph.op("SQUARED_DIFFERENCE", [x, mean], SHAPE)
        case _:
            squared = graph.op("SQUARE", [deviation], SHAPE)
    variance = graph.op("MEAN", [squared, axes], column, keepDims=True)
    total = graph.op("ADD", [variance, graph.constant("eps", np.float32(epsilon))], column)
    one = graph.constant("one", np.float32(1))
    if root == "RSQRT":
        y = graph.op("MUL", [deviation, graph.op("RSQRT", [total], column)], SHAPE)
    elif root == "1 / SQRT":
        inverse = graph.op("DIV", [one, graph.op("SQRT", [total], column)], column)
        y = graph.op("MUL", [inverse, deviation], SHAPE)
    else:
        y = graph.op("DIV", [deviation, graph.op("SQRT", [total], column)], SHAPE)
    if weight:
        y = graph.op("MUL", [graph.constant("weight", np.ones(weight_shape, np.float32)), y], SHAPE)
    if bias:
        y = graph.op("ADD", [y, graph.constant("bias", np.zeros(D, np.float32))], SHAPE)
    graph.output(y)
    return graph, y


def match(graph: Graph) -> LayerNorm:
    return match_layer_norm(next(node for node in graph.ir if node.op_type in ("RSQRT", "SQRT")))


@pytest.mark.parametrize("square", ["MUL", "POW", "SQUARE", "SQUARED_DIFFERENCE"])
@pytest.mark.parametrize("root", ["RSQRT", "SQRT", "1 / SQRT"])
@pytest.mark.parametrize(("weight", "bias"), [(True, True), (True, False), (False, True), (False, False)])
def test_forms(square: str, root: str, weight: bool, bias: bool) -> None:
    graph, y = norm(square=square, root=root, weight=weight, bias=bias)
    matched = match(graph)
    assert matched.last is y.producer()
    assert matched.x.name == "x"
    assert [v.name if v is not None else None for v in (matched.weight, matched.bias)] == [
        "weight" if weight else None,
        "bias" if bias else None,
    ]
    assert matched.epsilon == pytest.approx(1e-5)


def test_what_other_nodes_use_is_not_part_of_it() -> None:
    """The result before the bias is an output: the bias stays an operator of its own."""
    graph, y = norm()
    scaled = y.producer().inputs[0]  # type: ignore[union-attr]
    graph.output(scaled)  # type: ignore[arg-type]
    matched = match(graph)
    assert matched.last is scaled.producer()  # type: ignore[union-attr]
    assert matched.bias is None


def test_a_weight_of_another_shape_is_not_part_of_it() -> None:
    """Cohere has a row of weights for each head."""
    graph, _ = norm(weight_shape=(2, D), bias=False)
    assert match(graph).weight is None


FAILURES: dict[str, tuple[Callable[[], tuple[Graph, ir.Value]], str]] = {
    "epsilon": (lambda: norm(epsilon=0.0), "epsilon is 0.0"),
    "mean": (lambda: norm(mean_of="other"), "the tensor and its mean differ"),
    "axis": (lambda: norm(axis=1), r"the mean goes over axes \[1\], not the last one"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_failures(name: str) -> None:
    build, reason = FAILURES[name]
    with pytest.raises(MatchFailure, match=reason):
        match(build()[0])
