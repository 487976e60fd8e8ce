"""`o2o.attention` in ONNX, with all that it adds to causal attention, in chunks and token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from o2o.contract import Role
from o2o.errors import ModelError
from o2o.lower.onnx import lower_to_onnx
from o2o.model import Model
from o2o.operators.core_attention import CoreAttention
from tests.o2o.graphs import FLOAT, INT32, INT64, Graph, weights
from tests.o2o.lower.onnx.decoders import answers
from tests.o2o.lower.onnx.running import FORMS, Running, checked, chunks
from tests.tolerances import assert_close

pytest.importorskip("onnxruntime")

LOWEST = float(np.finfo(np.float32).min)


@dataclass(frozen=True)
class Shape:
    """N query heads, K key heads of size H, V words, caches of S rows; the rotation of queries and keys."""

    N: int = 4
    K: int = 2
    H: int = 16
    V: int = 37
    S: int = 13
    R: int = 0
    interleaved: bool = False


def attention_model(
    shape: Shape = Shape(), extras: Callable[[Graph, ir.Value], dict[str, Any]] | None = None
) -> Model:
    """A decode graph of one attention; `extras` gives fields of CoreAttention, from the position."""
    of = shape
    graph = Graph("decode")

    def given(name: str, dims: Sequence[int], role: Role, dtype: ir.DataType = FLOAT) -> ir.Value:
        value = graph.input(name, dims, dtype)
        value.meta["role"] = role
        return value

    def ints(*numbers: int) -> ir.Value:
        return graph.constant("ints", np.int32(numbers))

    ids = given("ids", [1, 1], Role("tokens"), INT64)
    position = given("position", [1], Role("position"), INT64)
    where = graph.op("CAST", [position], [1], INT32)
    start = graph.op("CONCATENATION", [ints(0), ints(0), where, ints(0)], [4], INT32, axis=0)
    D = of.N * of.H
    table = graph.constant("table", 2 * weights(of.V, D))
    x = graph.op("GATHER", [table, ids], [1, 1, D], axis=0, batchDims=0)
    heads = []
    for index, (name, count) in enumerate({"q": of.N, "k": of.K, "v": of.K}.items()):
        matrix = graph.constant(f"{name}.weight", 3 * weights(count * of.H, D, seed=index + 1))
        y = graph.fc(x, matrix, name)
        y = graph.op("RESHAPE", [y, ints(1, count, 1, of.H)], [1, count, 1, of.H])
        heads.append(rotated(graph, y, position, of) if name != "v" and of.R else y)
    q, *new = heads
    written = []
    for kind, row in zip(("key", "value"), new, strict=True):
        past = given(f"past_{kind}_0", [1, of.K, of.S, of.H], Role(f"{kind}_cache", 0, "BNTH"))  # type: ignore[arg-type]
        shape_ = [1, of.K, of.S, of.H]
        y = graph.op("DYNAMIC_UPDATE_SLICE", [past, row, start], shape_, name=f"present_{kind}_0")
        y.meta["role"] = Role(kind, 0, "BNTH")  # type: ignore[arg-type]
        written.append(y)
    fields = dict(zip("kv", written, strict=True)) | {"scale": of.H**-0.5}
    fields |= extras(graph, position) if extras else {}
    node = CoreAttention(q, position=position, **fields).build("attended")
    graph.ir.append(node)
    flat = graph.op("RESHAPE", [node.outputs[0], ints(1, 1, D)], [1, 1, D])
    logits = graph.fc(flat, graph.constant("head", weights(of.V, D, seed=9)), "logits")
    logits.meta["role"] = Role("logits")
    graph.output(logits, *written)
    return graph.model()


def rotated(graph: Graph, x: ir.Value, position: ir.Value, of: Shape) -> ir.Value:
    """x [1, n, 1, H], its first R elements rotated, in the operators that transformers' code becomes."""
    n, half, R = x.shape[1], of.R // 2, of.R  # type: ignore[index]

    def ints(*numbers: int) -> ir.Value:
        return graph.constant("ints", np.int32(numbers))

    def cut(y: ir.Value, begin: int, end: int, step: int = 1) -> ir.Value:
        bounds = ints(0, 0, 0, begin), ints(1, n, 1, end), ints(1, 1, 1, step)  # type: ignore[arg-type]
        length = len(range(begin, end, step))
        masks = dict.fromkeys(("beginMask", "endMask", "ellipsisMask", "newAxisMask", "shrinkAxisMask"), 0)
        return graph.op("STRIDED_SLICE", [y, *bounds], [1, n, 1, length], **masks)  # type: ignore[list-item]

    where = graph.op("CAST", [position], [1], FLOAT)
    frequencies = graph.constant("frequencies", (50.0 ** -np.linspace(0, 1, half)).astype(np.float32))
    angles = graph.op("MUL", [where, frequencies], [half])
    if of.interleaved:
        column = graph.op("RESHAPE", [angles, ints(half, 1)], [half, 1])
        pairs = graph.op("BROADCAST_TO", [column, ints(half, 2)], [half, 2])
        both = graph.op("RESHAPE", [pairs, ints(1, 1, 1, R)], [1, 1, 1, R])
    else:
        twice = graph.op("CONCATENATION", [angles, angles], [R], axis=0)
        both = graph.op("RESHAPE", [twice, ints(1, 1, 1, R)], [1, 1, 1, R])
    cos, sin = (graph.op(name, [both], [1, 1, 1, R]) for name in ("COS", "SIN"))
    part = cut(x, 0, R) if R < of.H else x
    if of.interleaved:
        even, odd = cut(part, 0, R, 2), cut(part, 1, R, 2)
        columns = [
            graph.op("RESHAPE", [y, ints(1, n, 1, half, 1)], [1, n, 1, half, 1])  # type: ignore[arg-type,list-item]
            for y in (graph.op("NEG", [odd], [1, n, 1, half]), even)  # type: ignore[list-item]
        ]
        stacked = graph.op("CONCATENATION", columns, [1, n, 1, half, 2], axis=-1)  # type: ignore[list-item]
        swapped = graph.op("RESHAPE", [stacked, ints(1, n, 1, R)], [1, n, 1, R])  # type: ignore[arg-type,list-item]
    else:
        negative = graph.op("NEG", [cut(part, half, R)], [1, n, 1, half])  # type: ignore[list-item]
        swapped = graph.op("CONCATENATION", [negative, cut(part, 0, half)], [1, n, 1, R], axis=-1)  # type: ignore[list-item]
    products = [graph.op("MUL", pair, [1, n, 1, R]) for pair in ([part, cos], [swapped, sin])]  # type: ignore[list-item]
    rotated_part = graph.op("ADD", products, [1, n, 1, R])  # type: ignore[list-item]
    if R == of.H:
        return rotated_part
    return graph.op("CONCATENATION", [rotated_part, cut(x, R, of.H)], [1, n, 1, of.H], axis=-1)  # type: ignore[list-item]


def compare(shape: Shape, extras: Callable[[Graph, ir.Value], dict[str, Any]] | None, form: str) -> ir.Model:
    ids = np.random.default_rng(1).integers(0, shape.V, shape.S).tolist()
    expected = answers(attention_model(shape, extras), ids)
    lowered = checked(attention_model(shape, extras), form)
    running = Running(lowered)
    for first in ([5, 3], [1], [shape.S]):
        for cache in running.caches.values():
            cache.update_inplace(np.full(cache.shape(), 9, np.float32))
        for start, stop in chunks(shape.S, first):
            assert_close(running.step(ids[start:stop], start).reshape(-1), expected[stop - 1])
    return lowered


def _slopes(graph: Graph) -> ir.Value:
    return graph.constant("slopes", np.float32([0.5, 0.25, 0.125, 0.0625]))


def _sinks(graph: Graph) -> ir.Value:
    return graph.constant("sinks", np.float32([0.5, -1, 2, 0]))


def _table(graph: Graph, position: ir.Value, table: np.ndarray) -> ir.Value:
    """The row of a table at the position."""
    rows = graph.constant("rows", table.astype(np.float32))
    row = graph.op("GATHER", [rows, position], [1, *table.shape[1:]], axis=0, batchDims=0)
    return graph.op(
        "RESHAPE", [row, graph.constant("ints", np.int32([1, *table.shape[1:]]))], [1, *table.shape[1:]]
    )


DISTANCE = np.arange(13)[:, None] - np.arange(13)
BIAS = np.where(DISTANCE >= 0, np.random.default_rng(3).standard_normal((4, 13, 13)), LOWEST)

EXTRAS: dict[str, Callable[[Graph, ir.Value], dict[str, Any]]] = {
    "plain": lambda graph, position: {},
    "scale": lambda graph, position: {"scale": 0.7},
    "softcap": lambda graph, position: {"softcap": 1.5},
    "window": lambda graph, position: {"window": 4},
    "slopes": lambda graph, position: {"slopes": _slopes(graph)},
    "sinks": lambda graph, position: {"sinks": _sinks(graph)},
    "all": lambda graph, position: {
        "softcap": 2.0,
        "window": 5,
        "slopes": _slopes(graph),
        "sinks": _sinks(graph),
        "scale": 0.3,
    },
    "causal mask": lambda graph, position: {
        "mask": _table(graph, position, np.where(DISTANCE >= 0, 0, LOWEST)[:, None, None])
    },
    "window in a mask": lambda graph, position: {
        "mask": _table(graph, position, np.where((DISTANCE >= 0) & (DISTANCE < 3), 0, LOWEST)[:, None, None])
    },
    "bias of each head in a mask": lambda graph, position: {
        "mask": _table(graph, position, BIAS.transpose(1, 0, 2)[:, :, None])
    },
    "mask and slopes": lambda graph, position: {
        "mask": _table(graph, position, BIAS[0][:, None, None]),
        "slopes": _slopes(graph),
        "sinks": _sinks(graph),
    },
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("H", [16, 10])
@pytest.mark.parametrize("extras", EXTRAS)
def test_attention(extras: str, H: int, form: str) -> None:
    """Heads of 10 elements are not those of GroupQueryAttention."""
    lowered = compare(Shape(H=H), EXTRAS[extras], form)
    kinds = {node.op_type for node in lowered.graph}
    assert ("GroupQueryAttention" in kinds) == (form == "ort" and H == 16)


def test_masks_that_need_no_operand() -> None:
    for extras, window in (("causal mask", -1), ("window in a mask", 3)):
        lowered = lower_to_onnx(attention_model(Shape(), EXTRAS[extras]), "ort")
        (node,) = (node for node in lowered.graph if node.op_type == "GroupQueryAttention")
        assert node.attributes.get_int("local_window_size", -1) == window
        assert len(node.inputs) <= 7


ROTATIONS = {
    "halves": Shape(R=16),
    "neighbors": Shape(R=16, interleaved=True),
    "halves of a part of the head": Shape(H=32, R=16),
    "halves of 12 elements": Shape(H=32, R=12),
    "neighbors in 12 elements": Shape(H=32, R=12, interleaved=True),
    "halves of 6 elements of 10": Shape(H=10, R=6),
    "neighbors in 4 elements of 8": Shape(H=8, R=4, interleaved=True),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ROTATIONS)
def test_rotation(name: str, form: str) -> None:
    """Each is one operator, or a part of attention."""
    lowered = compare(ROTATIONS[name], None, form)
    kinds = [node.op_type for node in lowered.graph]
    assert not {"Mul", "Neg", "Concat"} & set(kinds)
    inside = form == "ort" and name in (
        "halves",
        "neighbors",
        "halves of a part of the head",
        "neighbors in 12 elements",
    )
    assert kinds.count("RotaryEmbedding") == (0 if inside else 2)


def test_the_standard_form_by_the_standard() -> None:
    """The reference implementation of ONNX computes the same."""
    from onnx.reference import ReferenceEvaluator

    shape = Shape(S=13, R=8, interleaved=True)
    ids = np.random.default_rng(1).integers(0, shape.V, shape.S).tolist()
    for extras in ("all", "softcap", "slopes"):
        expected = answers(attention_model(shape, EXTRAS[extras]), ids)
        evaluator = ReferenceEvaluator(
            ir.to_proto(checked(attention_model(shape, EXTRAS[extras]), "standard"))
        )
        past = {f"past_{kind}_0": np.zeros((1, 2, 13, 16), np.float32) for kind in ("key", "value")}
        for start, stop in chunks(13, [5, 4]):
            feeds = {"tokens": np.array([ids[start:stop]]), "position": np.array([start]), **past}
            logits, *present = evaluator.run(None, feeds)
            past = dict(zip(past, present, strict=True))
            assert_close(logits.reshape(-1), expected[stop - 1])


def refusal(extras: Callable[[Graph, ir.Value], dict[str, Any]]) -> str:
    with pytest.raises(ModelError) as caught:
        lower_to_onnx(attention_model(Shape(), extras))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_refusals() -> None:
    visible = np.random.default_rng(2).standard_normal((13, 1, 1, 13))
    sees_all = refusal(lambda graph, position: {"mask": _table(graph, position, visible)})
    assert sees_all.startswith("o2o.attention (attended in decode")
    assert "shows keys after the position of the query" in sees_all

    def from_tokens(graph: Graph, position: ir.Value) -> dict[str, Any]:
        number = graph.op("CAST", [graph.ir.inputs[0]], [1, 1], FLOAT)
        return {
            "mask": graph.op("ADD", [number, graph.constant("row", np.zeros((1, 13), np.float32))], [1, 13])
        }

    assert "depends on more than position and caches" in refusal(from_tokens)

    def other_position(graph: Graph, position: ir.Value) -> dict[str, Any]:
        return {}

    model = attention_model(Shape(), other_position)
    node = next(node for node in model.graphs[0] if node.op_type == "o2o.attention")
    graph = Graph("unused")
    graph.ir = model.graphs[0]
    node.replace_input_with(3, graph.constant("three", np.int64([3])))
    with pytest.raises(ModelError, match="its position operand three is not the graph's position input"):
        lower_to_onnx(model)


def test_two_windows_in_one_model_share_nothing() -> None:
    """Layers with and without a window, as in Gemma 2."""
    shape = replace(Shape(), S=9)
    for window in (0, 3):
        compare(shape, lambda graph, position, window=window: {"window": window}, "standard")  # type: ignore[misc]
