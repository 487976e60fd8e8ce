"""Llama's decode graph in Circle, of any size, with random weights, as the filters leave it; its answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir

from o2o.contract import Role, role_of
from o2o.formats.tensors import is_quantized
from o2o.lower.litert import lower_to_litert
from o2o.model import Model, shape_of
from o2o.operators import reference
from o2o.operators.core_attention import CoreAttention
from o2o.quantization.compare import dequantized
from tests.o2o.graphs import FLOAT, INT32, INT64, Graph, run, weights


@dataclass(frozen=True)
class Shape:
    """N query heads, K key heads of size H, D wide, I in the MLP, V words, caches of S rows."""

    N: int = 4
    K: int = 2
    H: int = 16
    D: int = 64
    I: int = 96  # noqa: E741 - as in the glossary of the others
    V: int = 67
    S: int = 14
    layers: int = 2
    layout: str = "BTNH"
    tied: bool = False
    rotate: bool = True
    ids: ir.DataType = INT64


def decoder(shape: Shape = Shape(), T: int = 1) -> Model:
    """Signature `decode`; T: the tokens that it takes."""
    of = shape
    graph, rng = Graph("decode"), np.random.default_rng(5)

    def given(name: str, dims: Sequence[int], role: Role, dtype: ir.DataType = FLOAT) -> ir.Value:
        value = graph.input(name, dims, dtype)
        value.meta["role"] = role
        return value

    def matrix(name: str, rows: int, columns: int) -> ir.Value:
        numbers = rng.standard_normal((rows, columns)) * 1.5 / columns**0.5
        return graph.constant(f"{name}.weight", numbers.astype(np.float32))

    def norm(x: ir.Value, name: str) -> ir.Value:
        weight = graph.constant(f"{name}.weight", rng.uniform(0.7, 1.3, of.D).astype(np.float32))
        return graph.op("RMS_NORM", [x, weight], [1, T, of.D], name=name, epsilon=1e-5)

    ids = given("input_ids", [1, T], Role("tokens"), of.ids)
    position = given("cache_position", [1], Role("position"), INT64)
    cache = [1, of.S, of.K, of.H] if of.layout == "BTNH" else [1, of.K, of.S, of.H]
    table = matrix("embed_tokens", of.V, of.D)
    x = graph.op("GATHER", [table, ids], [1, T, of.D], FLOAT, name="embed_tokens", axis=0, batchDims=0)
    cos: ir.Value | None = None
    sin: ir.Value | None = None
    if of.rotate:
        where = graph.op("CAST", [position], [1], FLOAT)
        frequencies = graph.constant(
            "frequencies", (100.0 ** -np.linspace(0, 1, of.H // 2)).astype(np.float32)
        )
        half = graph.op("MUL", [where, frequencies], [of.H // 2], FLOAT)
        both = graph.op("CONCATENATION", [half, half], [of.H], FLOAT, axis=0)
        angles = graph.op("RESHAPE", [both, graph.constant("s", np.int32([1, 1, of.H]))], [1, 1, of.H])
        cos, sin = (graph.op(name, [angles], [1, 1, of.H], name=name.lower()) for name in ("COS", "SIN"))
    for layer in range(of.layers):
        name = f"layers.{layer}"
        past = [
            given(f"past_{kind}_{layer}", cache, Role(f"{kind}_cache", layer, of.layout))  # type: ignore[arg-type]
            for kind in ("key", "value")
        ]
        heads = {"q": of.N, "k": of.K, "v": of.K}
        projections = [matrix(f"{name}.{which}_proj", n * of.H, of.D) for which, n in heads.items()]
        out = matrix(f"{name}.o_proj", of.D, of.N * of.H)
        operands = [norm(x, f"{name}.norm"), *projections, out, cos, sin, None, *past, position]
        attended = graph.op("ATTENTION", operands, [1, T, of.D], name=f"{name}.attention")
        x = graph.op("ADD", [x, attended], [1, T, of.D], name=f"{name}.add")
        y = norm(x, f"{name}.mlp_norm")
        gate, up = (
            graph.fc(y, matrix(f"{name}.{which}", of.I, of.D), f"{name}.{which}") for which in ("gate", "up")
        )
        open_ = graph.op("LOGISTIC", [gate], [1, T, of.I], name=f"{name}.sigmoid")
        silu = graph.op("MUL", [gate, open_], [1, T, of.I], name=f"{name}.silu")
        inside = graph.op("MUL", [silu, up], [1, T, of.I], name=f"{name}.inside")
        down = graph.fc(inside, matrix(f"{name}.down", of.D, of.I), f"{name}.down")
        x = graph.op("ADD", [x, down], [1, T, of.D], name=f"{name}.out")
    head = table if of.tied else matrix("lm_head", of.V, of.D)
    logits = graph.fc(norm(x, "norm"), head, "logits")
    logits.meta["role"] = Role("logits")
    graph.output(logits)
    return graph.model()


def plain() -> Model:
    """Two words of attention without norms, biases and projections: of operators that TFLite has, too."""
    K, H, S, V = 1, 8, 6, 9
    graph = Graph("decode")

    def given(name: str, dims: Sequence[int], role: Role, dtype: ir.DataType = FLOAT) -> ir.Value:
        value = graph.input(name, dims, dtype)
        value.meta["role"] = role
        return value

    ids, position = (
        given("ids", [1, 1], Role("tokens"), INT64),
        given("position", [1], Role("position"), INT64),
    )
    where = graph.op("CAST", [position], [1], INT32)
    zero = graph.constant("zero", np.int32([0]))
    start = graph.op("CONCATENATION", [zero, zero, where, zero], [4], INT32, axis=0)
    table = graph.constant("table", weights(V, H))
    x = graph.op("GATHER", [table, ids], [1, 1, H], FLOAT, axis=0, batchDims=0)
    heads = graph.op("RESHAPE", [x, graph.constant("s", np.int32([1, K, 1, H]))], [1, K, 1, H])
    written = []
    for kind in ("key", "value"):
        past = given(f"past_{kind}_0", [1, K, S, H], Role(f"{kind}_cache", 0, "BNTH"))  # type: ignore[arg-type]
        new = graph.op("DYNAMIC_UPDATE_SLICE", [past, heads, start], [1, K, S, H], name=f"present_{kind}_0")
        new.meta["role"] = Role(kind, 0, "BNTH")  # type: ignore[arg-type]
        written.append(new)
    node = CoreAttention(heads, *written, position, scale=H**-0.5).build("attended")
    graph.ir.append(node)
    (y,) = node.outputs
    flat = graph.op("RESHAPE", [y, graph.constant("flat", np.int32([1, 1, K * H]))], [1, 1, K * H])
    logits = graph.fc(flat, graph.constant("head", weights(V, K * H, seed=1)), "logits")
    logits.meta["role"] = Role("logits")
    graph.output(logits, *written)
    return graph.model()


def answers(model: Model, ids: Sequence[int]) -> np.ndarray:
    """The logits behind each of `ids`, fed one by one to the decode graph: [len(ids), V], by
    o2o.operators.reference.

    Quantized constants count as what they stand for.
    """
    _widen(model.graphs[-1])
    return _fed(model.graphs[-1], ids, partial(reference.run_graph, model.graphs[-1]))


def on_litert(model: Model, ids: Sequence[int]) -> np.ndarray:
    """The same by LiteRT, which multiplies with quantized constants as integers."""
    lowered = lower_to_litert(model)
    return _fed(lowered.graphs[-1], ids, partial(run, lowered))


def _fed(graph: ir.Graph, ids: Sequence[int], compute: Callable[..., dict[str, np.ndarray]]) -> np.ndarray:
    roles = {value: role_of(value) for value in graph.inputs}
    feeds = {v.name or "": np.zeros(shape_of(v), v.dtype.numpy()) for v in graph.inputs}  # type: ignore[union-attr]
    found = []
    for step, token in enumerate(ids):
        for value, role in roles.items():
            if role is not None and role.kind in ("tokens", "position"):
                feeds[value.name or ""][...] = token if role.kind == "tokens" else step
        outputs = compute(feeds)
        for value in graph.outputs:
            role = role_of(value)
            if role is not None and role.kind in ("key", "value"):
                (cache,) = (
                    v for v, r in roles.items() if r == Role(f"{role.kind}_cache", role.layer, role.layout)
                )  # type: ignore[arg-type]
                feeds[cache.name or ""] = outputs[value.name or ""]
            elif role == Role("logits"):
                found.append(outputs[value.name or ""].reshape(-1))
    return np.stack(found)


def _widen(graph: ir.Graph) -> None:
    """Let the numbers of `graph` be what they stand for, float32."""
    for value in graph.initializers.values():
        if is_quantized(value) or value.dtype == ir.DataType.FLOAT16:
            numbers = np.asarray(dequantized(value), np.float32)
            value.const_value, value.type = ir.Tensor(numbers), ir.TensorType(FLOAT)
            value.meta.clear()
    for node in graph:
        for value in node.outputs:
            if value.dtype == ir.DataType.FLOAT16:
                value.type = ir.TensorType(FLOAT)
        if node.op_type == "DEQUANTIZE" and node.inputs[0] is not None:
            node.outputs[0].replace_all_uses_with(node.inputs[0])
            graph.remove(node, safe=True)
