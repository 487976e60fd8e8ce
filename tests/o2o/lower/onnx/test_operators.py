"""Each plain operator computes for T tokens what o2o.operators.reference computes for each of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from o2o.contract import Role
from o2o.errors import ModelError
from o2o.lower.onnx import lower_to_onnx
from o2o.model import Model, shape_of
from tests.o2o.graphs import BOOL, FLOAT, Graph, weights
from tests.o2o.lower.onnx.decoders import Shape, answers, decoder, on_litert
from tests.o2o.lower.onnx.running import FORMS, Running, checked
from tests.tolerances import assert_close

pytest.importorskip("onnxruntime")

SHAPE = Shape(layers=1, D=24, I=16, H=8, V=19, S=9)
Build = Callable[[Graph, ir.Value], ir.Value]


def with_operator(build: Build, shape: Shape = SHAPE) -> Model:
    """A decoder whose logits go through what `build` makes of them, [1, 1, 19], on the way."""
    model = decoder(shape)
    graph = Graph("unused")
    graph.ir = model.graphs[0]
    before = graph.ir.outputs[0]
    after = build(graph, before)
    flat = graph.op(
        "RESHAPE", [after, graph.constant("end", np.int32([1, 1, size(after)]))], [1, 1, size(after)]
    )
    del before.meta["role"]
    flat.meta["role"] = Role("logits")
    graph.ir.outputs[0] = flat
    model.signatures[0].outputs = {"logits": flat}
    return model


def size(value: ir.Value) -> int:
    return int(np.prod(shape_of(value)))


def unary(op_type: str, positive: bool = False, **options: object) -> Build:
    def build(graph: Graph, x: ir.Value) -> ir.Value:
        if positive:
            x = graph.op("EXP", [x], shape_of(x))
        return graph.op(op_type, [x], shape_of(x), **options)  # type: ignore[arg-type]

    return build


def binary(op_type: str, other: tuple[int, ...], dtype: ir.DataType = FLOAT, **options: object) -> Build:
    """With a constant of that shape."""

    def build(graph: Graph, x: ir.Value) -> ir.Value:
        constant = graph.constant("c", np.abs(weights(*other, seed=4)) + 0.1)
        y = graph.op(op_type, [x, constant], shape_of(x), dtype, **options)  # type: ignore[arg-type]
        return y if dtype == FLOAT else graph.op("CAST", [y], shape_of(x), FLOAT)

    return build


def column(graph: Graph, x: ir.Value, shape: tuple[int, ...] = (1, 19, 1)) -> ir.Value:
    return graph.op("RESHAPE", [x, graph.constant("column", np.int32(shape))], shape)


def outer(graph: Graph, x: ir.Value) -> ir.Value:
    """[1, 1, 19] times [1, 19, 1]: broadcast both ways."""
    return graph.op("MUL", [x, column(graph, x)], [1, 19, 19])


def matmul(graph: Graph, x: ir.Value) -> ir.Value:
    square = outer(graph, x)
    adjoint = graph.op("BATCH_MATMUL", [square, x], [1, 19, 1], adjointLhs=True, adjointRhs=True)
    constant = graph.constant("m", weights(1, 19, 5))
    return graph.op("BATCH_MATMUL", [column(graph, adjoint, (1, 1, 19)), constant], [1, 1, 5])


def transposed(graph: Graph, x: ir.Value) -> ir.Value:
    y = graph.op("ADD", [outer(graph, x), x], [1, 19, 19])
    return graph.op("TRANSPOSE", [y, graph.constant("axes", np.int32([0, 2, 1]))], [1, 19, 19])


def joined(axis: int, shape: tuple[int, ...]) -> Build:
    """x, what depends on the position alone, and a constant, side by side."""

    def build(graph: Graph, x: ir.Value) -> ir.Value:
        position = graph.op("CAST", [graph.ir.inputs[1]], [1], FLOAT)
        row = graph.op("MUL", [position, graph.constant("row", weights(1, 1, 19))], [1, 1, 19])
        parts = [x, row, graph.constant("fixed", weights(1, 1, 19, seed=2)), x]
        return graph.op("CONCATENATION", parts, shape, FLOAT, axis=axis)

    return build


def sliced(graph: Graph, x: ir.Value) -> ir.Value:
    y = outer(graph, x)
    bounds = (
        graph.constant(name, np.int32(value))
        for name, value in (("b", [0, 3, 1]), ("e", [1, 17, 19]), ("s", [1, 2, 1]))
    )
    strided = graph.op("STRIDED_SLICE", [y, *bounds], [1, 7, 18])
    bounds = (graph.constant(name, np.int32(value)) for name, value in (("b", [0, 0, 4]), ("n", [1, 7, -1])))
    return graph.op("SLICE", [strided, *bounds], [1, 7, 14])


def split(graph: Graph, x: ir.Value) -> ir.Value:
    y = graph.op(
        "MUL",
        [graph.op("CONCATENATION", [x, x], [1, 1, 38], axis=2), graph.constant("c", weights(38))],
        [1, 1, 38],
    )
    halves = [graph.value(f"half{k}", [1, 1, 19]) for k in (0, 1)]
    graph.node("SPLIT", [graph.constant("axis", np.int32(2)), y], halves)
    return graph.op("SUB", halves[::-1], [1, 1, 19])


def reduced(op_type: str, axes: list[int], shape: tuple[int, ...], keep: bool) -> Build:
    def build(graph: Graph, x: ir.Value) -> ir.Value:
        y = graph.op("ADD", [outer(graph, x), x], [1, 19, 19])
        return graph.op(op_type, [y, graph.constant("axes", np.int32(axes))], shape, keepDims=keep)

    return build


def selected(graph: Graph, x: ir.Value) -> ir.Value:
    low = graph.op("LESS", [x, graph.constant("z", np.float32(0))], [1, 1, 19], BOOL)
    high = graph.op("GREATER_EQUAL", [x, graph.constant("o", np.float32(1))], [1, 1, 19], BOOL)
    either = graph.op(
        "LOGICAL_OR", [low, graph.op("LOGICAL_NOT", [high], [1, 1, 19], BOOL)], [1, 1, 19], BOOL
    )
    return graph.op("SELECT_V2", [either, x, graph.constant("n", np.float32(-3))], [1, 1, 19], FLOAT)


def position_and_token(graph: Graph, x: ir.Value) -> ir.Value:
    """What depends on the position alone is looked up, what depends on a token too is not."""
    position = graph.op("CAST", [graph.ir.inputs[1]], [1], FLOAT)
    return graph.op("MUL", [x, graph.op("SIN", [position], [1])], [1, 1, 19])


def folded(graph: Graph, x: ir.Value) -> ir.Value:
    """Of constants alone."""
    both = graph.op("ADD", [graph.constant("a", weights(19)), graph.constant("b", weights(1, seed=3))], [19])
    return graph.op("MUL", [x, both], [1, 1, 19])


def wide_linear(graph: Graph, x: ir.Value) -> ir.Value:
    """FULLY_CONNECTED of several rows a token, with a bias."""
    weight, bias = graph.constant("w", weights(4, 19)), graph.constant("bias", weights(4, seed=1))
    return graph.op("FULLY_CONNECTED", [outer(graph, x), weight, bias], [1, 19, 4], keepNumDims=1)


def strided(begin: list[int], end: list[int], step: list[int], shape: tuple[int, ...]) -> Build:
    def build(graph: Graph, x: ir.Value) -> ir.Value:
        bounds = [graph.constant(n, np.int32(v)) for n, v in (("b", begin), ("e", end), ("s", step))]
        return graph.op("STRIDED_SLICE", [outer(graph, x), *bounds], shape)

    return build


def packed(axis: int, shape: tuple[int, ...]) -> Build:
    """x, a constant, and x times 2, along a new axis."""

    def build(graph: Graph, x: ir.Value) -> ir.Value:
        twice = graph.op("MUL", [x, graph.constant("two", np.float32(2))], [1, 1, 19])
        fixed = graph.constant("fixed", weights(1, 1, 19))
        return graph.op("PACK", [x, fixed, twice], shape, FLOAT, axis=axis, valuesCount=3)

    return build


def unpacked(graph: Graph, x: ir.Value) -> ir.Value:
    y = graph.op("MUL", [column(graph, x), graph.constant("pair", weights(2))], [1, 19, 2])
    halves = [graph.value(f"part{k}", [1, 19]) for k in (0, 1)]
    unpack = graph.node("UNPACK", [y], halves)
    unpack.attributes.update({a.name: a for a in ir.convenience.convert_attributes({"axis": 2, "num": 2})})
    return graph.op("SUB", halves[::-1], [1, 19])


def split_by_sizes(graph: Graph, x: ir.Value) -> ir.Value:
    y = outer(graph, x)
    parts = [graph.value(f"part{k}", [1, n, 19]) for k, n in enumerate((4, 15))]
    constants = graph.constant("sizes", np.int32([4, 15])), graph.constant("axis", np.int32(1))
    graph.node("SPLIT_V", [y, *constants], parts)
    return graph.op("CONCATENATION", parts[::-1], [1, 19, 19], axis=1)


def with_ints(op_type: str, numbers: list[int], shape: tuple[int, ...], **options: object) -> Build:
    """Of the outer product and a vector of integers."""

    def build(graph: Graph, x: ir.Value) -> ir.Value:
        constant = graph.constant("numbers", np.int32(numbers))
        return graph.op(op_type, [outer(graph, x), constant], shape, **options)  # type: ignore[arg-type]

    return build


def broadcast(graph: Graph, x: ir.Value) -> ir.Value:
    shape = graph.constant("shape", np.int32([2, 19, 3]))
    return graph.op("BROADCAST_TO", [column(graph, x), shape], [2, 19, 3])


def padded(graph: Graph, x: ir.Value) -> ir.Value:
    amounts = graph.constant("amounts", np.int32([[0, 0], [1, 0], [2, 3]]))
    number = graph.constant("number", np.float32(0.5))
    y = graph.op("PADV2", [outer(graph, x), amounts, number], [1, 20, 24])
    return graph.op("PAD", [y, graph.constant("more", np.int32([[0, 0], [0, 2], [0, 0]]))], [1, 22, 24])


def leaky(graph: Graph, x: ir.Value) -> ir.Value:
    y = graph.op("LEAKY_RELU", [x], [1, 1, 19], alpha=0.3)
    return graph.op("PRELU", [y, graph.constant("slopes", weights(1, 1, 19))], [1, 1, 19])


LITERT_OPERATORS: dict[str, Build] = {
    **{name: unary(name) for name in ("RELU6", "RELU_N1_TO_1", "ELU", "HARD_SWISH", "SIGN", "ROUND")},
    "LOG_SOFTMAX": unary("LOG_SOFTMAX"),
    "SOFTMAX of a factor": unary("SOFTMAX", beta=0.3),
    "LEAKY_RELU and PRELU": leaky,
    "PAD": padded,
    "UNPACK": unpacked,
    "CUMSUM": with_ints("CUMSUM", [1], (1, 19, 19)),
}
OPERATORS: dict[str, Build] = {
    "reversed": strided([0, 18, 17], [1, -20, 2], [1, -1, -3], (1, 19, 5)),
    "PACK in front": packed(0, (3, 1, 1, 19)),
    "PACK in the middle": packed(2, (1, 1, 3, 19)),
    "PACK at the end": packed(-1, (1, 1, 19, 3)),
    "SPLIT_V": split_by_sizes,
    "TILE": with_ints("TILE", [1, 2, 3], (1, 38, 57)),
    "BROADCAST_TO": broadcast,
    "GATHER of constant places": with_ints("GATHER", [3, 3, 0, 18], (1, 4, 19), axis=1, batchDims=0),
    "NOT_EQUAL": binary("NOT_EQUAL", (19,), BOOL),
    "GELU": unary("GELU", approximate=False),
    "GELU by tanh": unary("GELU", approximate=True),
    **{
        name: unary(name)
        for name in ("NEG", "ABS", "SQUARE", "EXP", "SIN", "COS", "TANH", "LOGISTIC", "RELU")
    },
    **{name: unary(name, positive=True) for name in ("SQRT", "RSQRT", "LOG")},
    **{name: unary(name) for name in ("FLOOR", "CEIL")},
    "SOFTMAX": unary("SOFTMAX", beta=1.0),
    **{name: binary(name, (19,)) for name in ("ADD", "SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM")},
    "SQUARED_DIFFERENCE": binary("SQUARED_DIFFERENCE", (1, 1, 19)),
    "a scalar": binary("MUL", ()),
    "leading ones": binary("MUL", (1, 1, 1)),
    **{f"activation {k}": binary("ADD", (19,), fusedActivationFunction=k) for k in (1, 2, 3, 4)},
    "EQUAL": binary("EQUAL", (19,), BOOL),
    "LESS_EQUAL": binary("LESS_EQUAL", (19,), BOOL),
    "outer": outer,
    "BATCH_MATMUL": matmul,
    "TRANSPOSE": transposed,
    "CONCATENATION of the last": joined(2, (1, 1, 76)),
    "CONCATENATION of the middle": joined(1, (1, 4, 19)),
    "CONCATENATION of the first": joined(0, (4, 1, 19)),
    "SLICE": sliced,
    "SPLIT": split,
    "MEAN": reduced("MEAN", [2], (1, 19, 1), keep=True),
    "SUM": reduced("SUM", [1], (1, 19), keep=False),
    "REDUCE_MAX": reduced("REDUCE_MAX", [-1, 1], (1,), keep=False),
    "MEAN of axes of size 1": reduced("MEAN", [0], (19, 19), keep=False),
    "SELECT_V2": selected,
    "position": position_and_token,
    "folded": folded,
    "FULLY_CONNECTED": wide_linear,
}


@pytest.mark.parametrize("logits", ["last", "all"])
@pytest.mark.parametrize("name", OPERATORS)
def test_by_token(name: str, logits: str) -> None:
    build = OPERATORS[name]
    ids = [3, 1, 4, 1, 5, 9]
    expected = answers(with_operator(build), ids)
    for form in FORMS:
        running = Running(checked(with_operator(build), form, logits=logits))
        found = running.step(ids[:4], 0)[0], running.step(ids[4:], 4)[0]
        wanted = (expected[:4], expected[4:]) if logits == "all" else (expected[3:4], expected[5:])
        for these, those in zip(found, wanted, strict=True):
            assert_close(these, those)


def test_in_front_of_the_other_axes() -> None:
    """Quantized models have an axis more in front."""
    from o2o.quantization.quantize import quantize
    from o2o.quantization.recipes import find_recipe

    shape = Shape(layers=1, D=64, I=64, V=19, S=9)
    ids = [3, 1, 4, 1]
    for name in (
        "TRANSPOSE",
        "CONCATENATION of the middle",
        "SLICE",
        "SUM",
        "BATCH_MATMUL",
        "FULLY_CONNECTED",
    ):
        models = [with_operator(OPERATORS[name], shape) for _ in range(2)]
        for model in models:
            quantize(model, find_recipe("weight_only_int8"))
        expected = answers(models[0], ids)
        found = Running(checked(models[1], "ort", logits="all")).step(ids, 0)[0]
        assert_close(found, expected)


def test_by_litert() -> None:
    """Operators that o2o.operators.reference does not have, against LiteRT."""
    ids = [3, 1, 4, 1, 5, 9]
    for name, build in LITERT_OPERATORS.items():
        expected = on_litert(with_operator(build), ids)
        for form in FORMS:
            running = Running(checked(with_operator(build), form, logits="all"))
            actual = np.concatenate([running.step(ids[:4], 0)[0], running.step(ids[4:], 4)[0]])
            assert_close(actual, expected, err_msg=name)


def test_refusals_name_the_operator_and_its_place() -> None:
    def by_sign(graph: Graph, x: ir.Value) -> ir.Value:
        name = "model.layers.7/signs"
        return graph.op("ADD", [x, x], [1, 1, 19], name=name, fusedActivationFunction=5)

    with pytest.raises(ModelError) as caught:
        lower_to_onnx(with_operator(by_sign))
    place = "ADD (model.layers.7/signs in decode, module model.layers.7)"
    assert str(caught.value) == f"{place}: no ONNX lowering for its fused activation 5"


def test_what_depends_on_the_position_by_an_operator_without_a_reference_kernel() -> None:
    """It is computed at run time, not looked up."""

    def build(graph: Graph, x: ir.Value) -> ir.Value:
        position = graph.op("CAST", [graph.ir.inputs[1]], [1], FLOAT)
        return graph.op("MUL", [x, graph.op("SIGN", [position], [1])], [1, 1, 19])

    ids = [3, 1, 4, 1]
    expected = on_litert(with_operator(build), ids)
    for form in FORMS:
        lowered = checked(with_operator(build), form, logits="all")
        assert "Sign" in {node.op_type for node in lowered.graph}
        assert_close(Running(lowered).step(ids, 0)[0], expected)
