"""What `o2o.lower.onert.supported_ops` says that onert computes, onert computes, and as the
reference does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from o2o.lower.litert import lower_to_litert
from o2o.lower.onert.supported_ops import DTYPES, check_supported
from o2o.model import Model
from o2o.operators import reference
from tests.o2o import graphs
from tests.o2o.graphs import BOOL, FLOAT, INT32, INT64, Graph, weights
from tests.o2o.lower.onert.running import run_all

X = (1, 3, 2, 8)
HALF = (1, 3, 2, 4)
Make = Callable[[Graph, ir.Value], ir.Value | Sequence[ir.Value]]


@dataclass
class Case:
    """What is computed of x, an input of `shape` and `dtype`."""

    name: str
    make: Make
    shape: tuple[int, ...] = X
    dtype: ir.DataType = FLOAT

    @property
    def model(self) -> Model:
        graph = Graph("main")
        x = graph.input("x", self.shape, self.dtype)
        y = self.make(graph, x)
        graph.output(*([y] if isinstance(y, ir.Value) else y))
        return graph.model()

    @property
    def feeds(self) -> dict[str, np.ndarray]:
        return {"x": numbers(self.dtype, self.shape)}


def numbers(dtype: ir.DataType, shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """From 0.5 to about 4: no operator is without a result there."""
    drawn = np.abs(weights(*shape, seed=seed)) + 0.5
    return drawn > 1 if dtype == BOOL else drawn.astype(dtype.numpy())


def constant(graph: Graph, array: Any, dtype: Any = np.int32) -> ir.Value:
    return graph.constant("c", np.asarray(array, dtype))


def unary(name: str) -> Make:
    return lambda graph, x: graph.op(name, [x], X)


def binary(name: str, other: Sequence[int], dtype: ir.DataType, result: ir.DataType | None = None) -> Make:
    """x and a constant of shape `other`, which broadcasts."""

    def make(graph: Graph, x: ir.Value) -> ir.Value:
        return graph.op(name, [x, graph.constant("other", numbers(dtype, other, seed=1))], X, result)

    return make


def reduced(name: str, keep: bool) -> Make:
    shape = (1, 3, 2, 1) if keep else (1, 3, 2)
    return lambda graph, x: graph.op(name, [x, constant(graph, [3])], shape, keepDims=keep)


def selected(name: str, other: Sequence[int], dtype: ir.DataType) -> Make:
    def make(graph: Graph, x: ir.Value) -> ir.Value:
        if dtype == BOOL:
            condition = x
        else:
            one = graph.constant("one", np.ones(X, dtype.numpy()))
            condition = graph.op("LESS", [x, one], X, BOOL)
        return graph.op(name, [condition, x, graph.constant("other", numbers(dtype, other, 1))], X, dtype)

    return make


def sliced(graph: Graph, x: ir.Value) -> ir.Value:
    return graph.op("SLICE", [x, constant(graph, [0, 0, 0, 4]), constant(graph, HALF)], HALF)


def strided(graph: Graph, x: ir.Value) -> ir.Value:
    bounds = [constant(graph, numbers) for numbers in ([0, 0, 0, 4], X, [1, 1, 1, 1])]
    return graph.op("STRIDED_SLICE", [x, *bounds], HALF)


def split(graph: Graph, x: ir.Value) -> Sequence[ir.Value]:
    assert x.dtype is not None
    halves = [graph.value(name, HALF, x.dtype) for name in ("lower", "upper")]
    graph.node("SPLIT", [constant(graph, 3), x], halves, [ir.AttrInt64("numSplits", 2)])
    return halves


def multiplied(adjoint: bool) -> Make:
    def make(graph: Graph, x: ir.Value) -> ir.Value:
        matrix = graph.constant("w", weights(1, 3, 5, 8) if adjoint else weights(1, 3, 8, 5))
        return graph.op("BATCH_MATMUL", [x, matrix], (1, 3, 2, 5), adjointLhs=False, adjointRhs=adjoint)

    return make


def connected(activation: int, bias: bool) -> Make:
    def make(graph: Graph, x: ir.Value) -> ir.Value:
        added = graph.constant("b", weights(5, seed=3)) if bias else None
        w = graph.constant("w", weights(5, 8))
        return graph.op("FULLY_CONNECTED", [x, w, added], (6, 5), fusedActivationFunction=activation)

    return make


def joined(name: str) -> Make:
    def make(graph: Graph, x: ir.Value) -> ir.Value:
        assert x.dtype is not None
        operands = [x, graph.constant("other", numbers(x.dtype, X, seed=1))]
        if name == "PACK":
            return graph.op(name, operands, (2, *X), axis=0, valuesCount=2)
        return graph.op(name, operands, (1, 3, 2, 16), axis=3)

    return make


def gathered(kind: type) -> Make:
    def make(graph: Graph, x: ir.Value) -> ir.Value:
        return graph.op("GATHER", [x, constant(graph, [[1, 0, 1]], kind)], (1, 3, 8), axis=0)

    return make


def cast(dtype: ir.DataType, to: ir.DataType) -> Make:
    codes = {FLOAT: 0, INT32: 2, INT64: 4, BOOL: 6}
    return lambda graph, x: graph.op("CAST", [x], X, to, inDataType=codes[dtype], outDataType=codes[to])


def moved(name: str, to: Sequence[int], numbers: Any, **options: Any) -> Make:
    """x in shape `to`, which is a second operand."""
    return lambda graph, x: graph.op(name, [x, constant(graph, numbers)], to, **options)


def transposed(axes: Sequence[int]) -> Make:
    return moved("TRANSPOSE", [X[axis] for axis in axes], axes)


def normalized(graph: Graph, x: ir.Value) -> ir.Value:
    return graph.op("RMS_NORM", [x, graph.constant("w", weights(8))], x.shape.numpy(), epsilon=1e-5)  # type: ignore[union-attr]


def rotated(graph: Graph, x: ir.Value) -> ir.Value:
    tables = [graph.constant("table", weights(1, 1, 1, 8, seed=seed)) for seed in (1, 2)]
    return graph.op("ROPE", [x, *tables], x.shape.numpy(), mode=0)  # type: ignore[union-attr]


def makes(name: str, dtype: ir.DataType) -> list[Make | tuple[Make, tuple[int, ...]]]:
    """Builders of operator `name` on x of this dtype; with the shape of x where it is not the usual one."""
    match name:
        case "ADD" | "SUB" | "MUL" | "DIV" | "POW" | "SQUARED_DIFFERENCE" | "MAXIMUM" | "MINIMUM":
            return [binary(name, other, dtype) for other in (X, (1, 1, 2, 8), (8,), (), (2, 1))]
        case "LESS" | "LESS_EQUAL" | "GREATER" | "GREATER_EQUAL" | "EQUAL" | "NOT_EQUAL":
            return [binary(name, other, dtype, BOOL) for other in (X, (1, 1, 1, 8), (8,), ())]
        case "LOGICAL_AND" | "LOGICAL_OR":
            return [binary(name, X, dtype)]
        case "SELECT":
            return [selected(name, X, dtype)]
        case "SELECT_V2":
            return [selected(name, other, dtype) for other in (X, ())]
        case "MEAN" | "SUM" | "REDUCE_MAX":
            return [reduced(name, keep) for keep in (True, False)]
        case "CAST":
            return [cast(dtype, to) for to in (FLOAT, INT32, INT64)]
        case "RESHAPE":
            return [moved(name, (6, 8), (6, 8), newShape=[6, 8])]
        case "EXPAND_DIMS":
            return [moved(name, (1, *X), 1)]
        case "SQUEEZE":
            return [lambda graph, x: graph.op(name, [x], X[1:], squeezeDims=[0])]
        case "BROADCAST_TO":
            return [moved(name, (2, *X[1:]), (2, *X[1:]))]
        case "TILE":
            return [moved(name, (1, 3, 4, 8), (1, 1, 2, 1))]
        case "TRANSPOSE":
            return [transposed(axes) for axes in ((0, 2, 1, 3), (0, 1, 3, 2))]
        case "GATHER":
            return [(gathered(kind), (2, 8)) for kind in (np.int32, np.int64)]
        case "CONCATENATION" | "PACK":
            return [joined(name)]
        case "SLICE":
            return [sliced]
        case "STRIDED_SLICE":
            return [strided]
        case "SPLIT":
            return [split]
        case "SOFTMAX":
            return [lambda graph, x, b=beta: graph.op(name, [x], X, beta=b) for beta in (1.0, 0.3)]
        case "BATCH_MATMUL":
            return [multiplied(adjoint) for adjoint in (True, False)]
        case "FULLY_CONNECTED":
            return [(connected(act, bias), (6, 8)) for act in (0, 1, 3) for bias in (False, True)]
        case "RMS_NORM":
            return [(normalized, shape) for shape in ((1, 3, 8), X)]
        case "ROPE":
            return [(rotated, (1, 3, 1, 8))]
    return [unary(name)]


def cases() -> list[Case]:
    found = []
    for name, dtypes in DTYPES.items():
        for dtype in sorted(dtypes):
            for number, build in enumerate(makes(name, dtype)):
                make, shape = build if isinstance(build, tuple) else (build, X)
                found.append(Case(f"{name} {dtype.name} {number}", make, shape, dtype))
    return found


def expected(case: Case) -> list[np.ndarray]:
    graph = case.model.graphs[0]
    try:
        return list(reference.run_graph(graph, case.feeds).values())
    except reference.NotEvaluable:
        return list(graphs.run(lower_to_litert(case.model), case.feeds).values())


def test_onert_computes_them_and_right() -> None:
    all_ = cases()
    assert {case.name.split()[0] for case in all_} == set(DTYPES)
    wrong = []
    for case, found in zip(all_, run_all([(case.model, case.feeds) for case in all_]), strict=True):
        model = case.model
        for node in model.graphs[0]:
            check_supported(model, model.graphs[0], node)
        if isinstance(found, str):
            wrong.append(f"{case.name}: {found}")
            continue
        for one, other in zip(found.values(), expected(case), strict=True):
            if one.shape != other.shape or not np.allclose(one, other, rtol=1e-5, atol=1e-5):
                wrong.append(f"{case.name}: {one.reshape(-1)[:3]} not {other.reshape(-1)[:3]}")
    assert not wrong, "\n".join(wrong)
