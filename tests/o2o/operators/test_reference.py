"""The numpy meaning of every operator against LiteRT's, on random inputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from o2o.formats.schema import TFLITE
from o2o.model import CUSTOM_DOMAIN, Model
from o2o.operators import reference
from o2o.operators.reference import NotEvaluable
from tests.o2o import graphs
from tests.o2o.graphs import BOOL, FLOAT, INT32, INT64, Graph
from tests.tolerances import assert_close

DTYPES = {np.dtype(d.numpy()): d for d in (FLOAT, INT32, INT64, BOOL, ir.DataType.INT8)}


@dataclass
class Case:
    """One operator: inputs as arrays, those at `constants` constant, and the shape that comes out."""

    op: str
    inputs: list[np.ndarray | None]
    shape: tuple[int, ...]
    dtype: ir.DataType | None = None
    constants: tuple[int, ...] = ()
    outputs: int = 1
    attributes: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        options = {name: item for name, item in self.attributes.items() if not name.endswith("DataType")}
        shapes = ",".join("x".join(map(str, x.shape)) for x in self.inputs if x is not None)
        kinds = {x.dtype.kind for x in self.inputs if x is not None}
        return (
            f"{self.op} {shapes} {''.join(sorted(kinds))} {' '.join(f'{k}={v}' for k, v in options.items())}"
        )

    def model(self) -> tuple[Model, dict[str, np.ndarray]]:
        graph, feeds, values = Graph("main"), {}, []
        for index, array in enumerate(self.inputs):
            if array is None:
                values.append(None)
            elif index in self.constants:
                values.append(graph.constant(f"c{index}", array))
            else:
                feeds[f"x{index}"] = array
                values.append(graph.input(f"x{index}", array.shape, DTYPES[array.dtype]))
        first = next(value for value in values if value is not None)
        if self.outputs == 1:
            graph.output(
                graph.op(self.op, values, self.shape, self.dtype or first.dtype, "y", **self.attributes)
            )
        else:
            outputs = [graph.value(f"y{k}", self.shape) for k in range(self.outputs)]
            graph.node(
                self.op,
                values,
                outputs,
                [ir.convenience.convert_attribute(*a) for a in self.attributes.items()],
            )
            graph.output(*outputs)
        return graph.model(), feeds


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng([seed, *shape]).standard_normal(shape) * 2).astype(np.float32)


def integers(*shape: int, low: int = -9, high: int = 9, dtype: Any = np.int32) -> np.ndarray:
    actual = np.random.default_rng([1, *shape]).integers(low, high, shape).astype(dtype)
    return np.where(actual == 0, 1, actual).astype(dtype)


def bools(*shape: int) -> np.ndarray:
    return np.random.default_rng([2, *shape]).random(shape) < 0.5


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int32)


def _binary() -> list[Case]:
    cases = []
    for op in ("ADD", "SUB", "MUL", "DIV"):
        for activation in range(4):  # NONE, RELU, RELU_N1_TO_1, RELU6
            attributes = {"fusedActivationFunction": activation}
            cases.append(Case(op, [floats(2, 1, 4), floats(3, 1)], (2, 3, 4), attributes=attributes))
        cases.append(Case(op, [integers(2, 3), integers(3, low=1)], (2, 3)))
    for op in ("MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE", "FLOOR_DIV", "FLOOR_MOD"):
        cases.append(Case(op, [floats(2, 3), floats(2, 3, seed=1)], (2, 3)))
        cases.append(Case(op, [integers(2, 3), integers(3)], (2, 3)))
    cases.append(Case("POW", [np.abs(floats(2, 3)), floats(2, 3, seed=1)], (2, 3)))
    cases.append(Case("POW", [integers(2, 3), integers(2, 3, low=1, high=4)], (2, 3)))
    for op in ("LESS", "LESS_EQUAL", "GREATER", "GREATER_EQUAL", "EQUAL", "NOT_EQUAL"):
        for x in (floats(4, 5).round(), integers(4, 5, high=3), integers(4, 5, high=3, dtype=np.int64)):
            cases.append(Case(op, [x, x[::-1, :1].copy()], (4, 5), BOOL))
    for op in ("LOGICAL_AND", "LOGICAL_OR"):
        cases.append(Case(op, [bools(4, 5), bools(1, 5)], (4, 5)))
    return cases


def _unary() -> list[Case]:
    signed = ("NEG", "ABS", "EXP", "SIN", "COS", "TANH", "LOGISTIC", "RELU", "SQUARE")
    signed += ("FLOOR", "CEIL", "ROUND")
    cases = [Case(op, [floats(3, 4)], (3, 4)) for op in signed]
    cases += [Case(op, [np.abs(floats(3, 4)) + 0.1], (3, 4)) for op in ("SQRT", "RSQRT", "LOG")]
    cases += [Case("LOGICAL_NOT", [bools(3, 4)], (3, 4)), Case("NEG", [integers(3, 4)], (3, 4))]
    for x in (floats(3, 4) * 3, integers(3, 4), integers(3, 4, dtype=np.int64), bools(3, 4)):
        for dtype in (FLOAT, INT32, INT64, BOOL):
            if DTYPES[x.dtype] != dtype:
                cases.append(Case("CAST", [x], (3, 4), dtype))
    cases += [Case("SOFTMAX", [floats(2, 3, 5)], (2, 3, 5), attributes={"beta": beta}) for beta in (1.0, 0.5)]
    return cases


def _select() -> list[Case]:
    x, y = floats(3, 4), floats(3, 4, seed=1)
    return [
        Case("SELECT", [bools(3, 4), x, y], (3, 4), FLOAT),
        Case(
            "SELECT", [bools(4), floats(4, 4), floats(4, 4, seed=1)], (4, 4), FLOAT
        ),  # by row, not by column
        Case("SELECT", [np.array(True), x, y], (3, 4), FLOAT),
        Case("SELECT_V2", [bools(4), floats(4, 4), floats(4, 4, seed=1)], (4, 4), FLOAT),
        Case("SELECT_V2", [bools(3, 1), np.float32([7]), y], (3, 4), FLOAT),
    ]


def _layout() -> list[Case]:
    x = floats(2, 3, 4)
    return [
        Case("RESHAPE", [x, ints(4, 6)], (4, 6), constants=(1,), attributes={"newShape": [4, 6]}),
        Case("EXPAND_DIMS", [x, ints(1)], (2, 1, 3, 4), constants=(1,)),
        Case("SQUEEZE", [floats(2, 1, 3, 1)], (2, 3), attributes={"squeezeDims": [1, 3]}),
        Case("TRANSPOSE", [x, ints(2, 0, 1)], (4, 2, 3), constants=(1,)),
        Case("BROADCAST_TO", [floats(2, 1, 4), ints(5, 2, 3, 4)], (5, 2, 3, 4), constants=(1,)),
        Case("CONCATENATION", [x, floats(2, 1, 4)], (2, 4, 4), attributes={"axis": 1}),
        Case(
            "CONCATENATION",
            [x, floats(2, 3, 2)],
            (2, 3, 6),
            attributes={"axis": -1},
        ),
        Case("PACK", [x, floats(2, 3, 4, seed=1)], (2, 2, 3, 4), attributes={"axis": 1, "valuesCount": 2}),
        Case("GATHER_ND", [x, ints(1, 2, 0, 0).reshape(2, 2)], (2, 4), constants=(1,)),
        Case(
            "SPLIT_V",
            [x, ints(2, 2), np.array(2, np.int32)],
            (2, 3, 2),
            constants=(1, 2),
            outputs=2,
            attributes={"numSplits": 2},
        ),
        Case("GELU", [x], (2, 3, 4), attributes={"approximate": True}),
        Case("GELU", [x], (2, 3, 4), attributes={"approximate": False}),
        Case(
            "SPLIT",
            [np.array(2, np.int32), x],
            (2, 3, 2),
            constants=(0,),
            outputs=2,
            attributes={"numSplits": 2},
        ),
        Case(
            "SPLIT",
            [np.array(-2, np.int32), x],
            (2, 1, 4),
            constants=(0,),
            outputs=3,
            attributes={"numSplits": 3},
        ),
        Case("TILE", [floats(2, 3), ints(2, 3)], (4, 9), constants=(1,)),
        Case("FILL", [ints(2, 3), np.array(5, np.float32)], (2, 3), FLOAT, constants=(0,)),
        Case("RANGE", [np.array(x, np.int32) for x in (3, 12, 4)], (3,), constants=(0, 1, 2)),
        Case("RANGE", [np.array(x, np.int32) for x in (9, 0, -2)], (5,), constants=(0, 1, 2)),
        Case("SHAPE", [x], (3,), INT32, attributes={"outType": 2}),
        Case("GATHER", [floats(5, 3), integers(2, 4, low=1, high=5)], (2, 4, 3), attributes={"axis": 0}),
        Case("GATHER", [floats(2, 5, 3), ints(4, 0)], (2, 2, 3), attributes={"axis": 1}),
        Case("EMBEDDING_LOOKUP", [ints(4, 0, 1), floats(5, 3)], (3, 3), FLOAT, constants=(1,)),
    ]


def _slices() -> list[Case]:
    x = np.arange(60, dtype=np.float32).reshape(3, 4, 5)

    def strided(begin: Any, end: Any, step: Any, shape: tuple[int, ...], **masks: int) -> Case:
        return Case(
            "STRIDED_SLICE", [x, ints(*begin), ints(*end), ints(*step)], shape, None, (1, 2, 3), 1, masks
        )

    return [
        Case("SLICE", [x, ints(1, 0, 2), ints(2, -1, 3)], (2, 4, 3), constants=(1, 2)),
        Case("SLICE", [x, ints(1, 0, 2), ints(2, -1, 3)], (2, 4, 3), constants=(2,)),
        strided((0, 1, 0), (3, 4, 5), (1, 2, 1), (3, 2, 5)),
        strided((0, -3, 0), (3, -1, 5), (1, 1, 1), (3, 2, 5)),
        strided((0, 0, 0), (9, 9, 9), (2, 1, 3), (2, 4, 2)),
        strided((2, 3, -1), (0, 0, 0), (-1, -1, -2), (2, 3, 2)),
        strided((-1, -1, -1), (-9, -9, -9), (-1, -1, -1), (3, 4, 5)),
        strided((1, 2, 3), (2, 3, 1), (1, 1, 1), (3, 1, 1), beginMask=0b101, endMask=0b001),
        strided((1, 2, 3), (2, 3, 1), (-1, 1, -1), (3, 2, 2), beginMask=0b101, endMask=0b011),
    ]


def _reductions() -> list[Case]:
    cases = []
    for op in ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN"):
        for axes, keep_dims, shape in (((-1,), 1, (2, 3, 1)), ((0, 2), 0, (3,)), ((1,), 1, (2, 1, 4))):
            cases.append(
                Case(
                    op,
                    [floats(2, 3, 4), ints(*axes)],
                    shape,
                    constants=(1,),
                    attributes={"keepDims": keep_dims},
                )
            )
    return cases


def _products() -> list[Case]:
    cases = []
    for lhs in (0, 1):
        for rhs in (0, 1):
            x = floats(2, 1, 3, 4).swapaxes(-1, -2).copy() if lhs else floats(2, 1, 3, 4)
            y = floats(5, 4, 2).swapaxes(-1, -2).copy() if rhs else floats(5, 4, 2)
            cases.append(
                Case("BATCH_MATMUL", [x, y], (2, 5, 3, 2), attributes={"adjointLhs": lhs, "adjointRhs": rhs})
            )
    x, w = floats(2, 3, 4), floats(5, 4)
    keep = {"keepNumDims": 1}
    cases += [
        Case("FULLY_CONNECTED", [x, w, None], (2, 3, 5), constants=(1,), attributes=keep),
        Case("FULLY_CONNECTED", [x, w, floats(5)], (2, 3, 5), constants=(1, 2), attributes=keep),
        Case("FULLY_CONNECTED", [x, w], (6, 5), constants=(1,)),
        Case("FULLY_CONNECTED", [x, floats(5, 12)], (2, 5), constants=(1,)),
        *(
            Case(
                "FULLY_CONNECTED",
                [x, w],
                (6, 5),
                constants=(1,),
                attributes={"fusedActivationFunction": kind},
            )
            for kind in (1, 2, 3)
        ),
    ]
    for row in (0, 2, 6, 99, -4):  # the last ones are moved to where the rows fit
        update = [floats(1, 2, 8, 3), floats(1, 2, 4, 3), ints(0, 0, row, 0)]
        cases.append(Case("DYNAMIC_UPDATE_SLICE", update, (1, 2, 8, 3)))
    return cases


CASES = [*_binary(), *_unary(), *_select(), *_layout(), *_slices(), *_reductions(), *_products()]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_means_what_litert_computes(case: Case) -> None:
    model, feeds = case.model()
    expected = graphs.run(model, feeds)
    actual = reference.run_graph(model.graphs[0], feeds)
    assert list(actual) == list(expected)
    for name in expected:
        assert actual[name].dtype == expected[name].dtype
        assert actual[name].shape == expected[name].shape
        assert_close(actual[name], expected[name])


CIRCLE_ONLY = {"RMS_NORM", "ROPE", "ATTENTION"}  # compared in lower/test_litert.py


def test_no_meaning_is_untested() -> None:
    assert {case.op for case in CASES} == set(reference._KERNELS) - CIRCLE_ONLY
    assert set(TFLITE.operator_codes) >= set(reference._KERNELS) - CIRCLE_ONLY


x3x4 = floats(3, 4)
WITHOUT_MEANING = {
    "ARG_MAX has no reference kernel": Case("ARG_MAX", [x3x4, ints(1)], (3,), INT64, (1,)),
    "fused activation 5": Case("ADD", [x3x4, x3x4], (3, 4), attributes={"fusedActivationFunction": 5}),
    "runtimes disagree": Case(
        "CONCATENATION", [x3x4, x3x4], (6, 4), attributes={"axis": 0, "fusedActivationFunction": 1}
    ),
    "GATHER by batch": Case("GATHER", [x3x4, ints(1, 1, 1)], (3,), attributes={"axis": 1, "batchDims": 1}),
    "shuffled weights": Case("FULLY_CONNECTED", [x3x4, x3x4], (3, 3), None, (1,), 1, {"weightsFormat": 1}),
    "new or shrunk axes": Case(
        "STRIDED_SLICE",
        [x3x4, ints(0, 0), ints(1, 4), ints(1, 1)],
        (4,),
        None,
        (1, 2, 3),
        1,
        {"shrinkAxisMask": 1},
    ),
    "ADD y is malformed": Case("ADD", [x3x4, floats(5)], (3, 4)),
    "POW y is malformed": Case("POW", [integers(3), ints(-1, -1, -1)], (3,)),
    "ROPE in a mode other than": Case("ROPE", [x3x4, x3x4, x3x4], (3, 4), attributes={"mode": 1}),
}


@pytest.mark.parametrize("reason", WITHOUT_MEANING)
def test_what_has_no_meaning_says_so(reason: str) -> None:
    model, feeds = WITHOUT_MEANING[reason].model()
    with pytest.raises(NotEvaluable, match=reason):
        reference.run_graph(model.graphs[0], feeds)


@pytest.mark.parametrize("which", ["weight", "result"])
def test_quantized_numbers_have_no_meaning(which: str) -> None:
    """int8 1, 2, 3 may stand for 0.5, 1, 1.5."""
    graph = Graph("main")
    x = graph.input("x", [3], ir.DataType.INT8)
    weight = graph.constant("weight", np.int8([1, 2, 3]))
    y = graph.op("ADD", [x, weight], [3], name="y")
    graph.output(y)
    {"weight": weight, "result": y}[which].meta["fields"] = {"quantization": graphs.per_channel([0.5])}
    with pytest.raises(NotEvaluable, match="quantized"):
        reference.run_graph(graph.ir, {"x": np.int8([1, 1, 1])})


def test_custom_operators_are_not_taken_for_builtins_of_their_name() -> None:
    graph = Graph("main")
    x, y = graph.input("x", [2]), graph.value("y", [2])
    graph.node("ABS", [x], [y], domain=CUSTOM_DOMAIN)
    graph.output(y)
    with pytest.raises(NotEvaluable):
        reference.run_graph(graph.ir, {"x": np.float32([-1, 1])})


def test_an_input_with_numbers_of_its_own_is_no_constant() -> None:
    """A file may give an input a buffer; callers set the input all the same."""
    graph = Graph("main")
    x = graph.input("x", [1])
    x.const_value = ir.Tensor(np.float32([5]), name="x")
    y = graph.op("ABS", [x], [1])
    assert reference.unknown_sources(y) == [x]
    with pytest.raises(NotEvaluable, match="x is unknown"):
        reference.evaluate(y, {})


def test_deep_graphs_need_no_deep_stack() -> None:
    graph = Graph("main")
    x = value = graph.input("x", [1])
    for _ in range(2000):
        value = graph.op("NEG", [value], [1])
    assert reference.evaluate(value, {x: np.float32([3])}) == 3
    assert reference.unknown_sources(value) == [x]


@pytest.mark.parametrize("layout", ["none", "BNTH", "BTNH"])
def test_attention_one_number_at_a_time(layout: str) -> None:
    """ATTENTION against loops over heads, queries and keys."""
    T, D, K, G, H, S, start = 3, 5, 2, 3, 4, 7, 2
    N = K * G
    random = np.random.default_rng(0)
    x, wo = random.standard_normal((1, T, D)), random.standard_normal((D, N * H))
    wq, wk, wv = (random.standard_normal((heads * H, D)) for heads in (N, K, K))
    angle = random.standard_normal((T, H // 2))
    cos, sin = (np.tile(f(angle), 2) for f in (np.cos, np.sin))
    past = random.standard_normal((2, K, S, H))

    def rotate(y: np.ndarray, t: int) -> np.ndarray:
        lower, upper = y[: H // 2], y[H // 2 :]
        c, s = cos[t, : H // 2], sin[t, : H // 2]
        return np.concatenate([lower * c - upper * s, upper * c + lower * s])

    keys, values = past.copy() if layout != "none" else np.zeros((2, K, T, H))
    first = start if layout != "none" else 0
    for head in range(K):
        for t in range(T):
            rows = slice(head * H, head * H + H)
            keys[head, first + t] = rotate(wk[rows] @ x[0, t], t)
            values[head, first + t] = wv[rows] @ x[0, t]
    expected = np.zeros((T, D))
    for t in range(T):
        mixed = np.zeros(N * H)
        for head in range(N):
            q = rotate(wq[head * H : head * H + H] @ x[0, t], t)
            seen = range(first + t + 1)
            scores = np.array([q @ keys[head // G, s] / H**0.5 for s in seen])
            p = np.exp(scores) / np.exp(scores).sum()
            mixed[head * H : head * H + H] = sum(p[s] * values[head // G, s] for s in seen)
        expected[t] = wo @ mixed

    graph = Graph("main")
    arrays = {"x": x, "wq": wq, "wk": wk, "wv": wv, "wo": wo, "cos": cos[None], "sin": sin[None]}
    feeds = {name: array.astype(np.float32) for name, array in arrays.items()}
    operands: list[ir.Value | None] = [graph.input(name, array.shape) for name, array in feeds.items()]
    if layout != "none":
        for name, cache in zip(("past_key_0", "past_value_0"), past, strict=True):
            rotated = cache if layout == "BNTH" else cache.swapaxes(0, 1)
            feeds[name] = rotated[None].astype(np.float32)
        caches = [graph.input(name, feeds[name].shape) for name in ("past_key_0", "past_value_0")]
        feeds["pos"] = np.array([start])
        operands += [None, *caches, graph.input("pos", [1], INT64)]
    graph.output(graph.op("ATTENTION", operands, [1, T, D], name="y"))
    actual = reference.run_graph(graph.ir, feeds)["y"]
    assert_close(actual[0], expected)
    if layout != "none":
        for name, cache in (("past_key_0", keys), ("past_value_0", values)):
            rotated = cache if layout == "BNTH" else cache.swapaxes(0, 1)
            assert_close(feeds[name][0], rotated)
