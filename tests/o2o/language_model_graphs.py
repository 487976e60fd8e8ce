"""A tiny language model as an export writes it: prefill and decode graphs over KV caches.

    key = E[t] * (position + 1), value = F[t], logits_i = U @ sum(key_j * value_j for j <= i)

Keys and values are written by DYNAMIC_UPDATE_SLICE at the position, [1, K, S, H].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from o2o.contract import Role
from o2o.model import Model
from tests.o2o.graphs import BOOL, FLOAT, INT32, INT64, Graph, sign, weights

V, K, H, S = 11, 2, 3, 8
WIDTH = K * H


def language_model(lengths: Sequence[int] = (4, 1), names: Sequence[str] = ("prefill_4", "decode")) -> Model:
    """Return a model with one graph and signature per length."""
    built = [_graph(name, length) for length, name in zip(lengths, names, strict=True)]
    model = Model("circle", [graph.ir for graph in built])
    for graph in built:
        sign(model, graph.ir)
    return model


def greedy_logits(tokens: Sequence[int]) -> np.ndarray:
    """Return the logits [V] after `tokens`, computed in numpy."""
    ids = np.asarray(tokens)
    keys = weights(V, WIDTH)[ids] * (np.arange(len(ids)) + 1)[:, None]
    return weights(V, WIDTH, seed=2) @ (keys * weights(V, WIDTH, seed=1)[ids]).sum(0)


def _graph(name: str, T: int) -> Graph:
    graph = Graph(name)

    def given(name: str, shape: Sequence[int], role: Role, dtype: ir.DataType = FLOAT) -> ir.Value:
        value = graph.input(name, shape, dtype)
        value.meta["role"] = role
        return value

    def reshape(x: ir.Value, shape: Sequence[int]) -> ir.Value:
        return graph.op("RESHAPE", [x, graph.constant("shape", np.int32(shape))], shape)

    def transpose(x: ir.Value, shape: Sequence[int], name: str | None = None) -> ir.Value:
        return graph.op("TRANSPOSE", [x, graph.constant("order", np.int32([0, 2, 1, 3]))], shape, FLOAT, name)

    def cast(x: ir.Value, to: ir.DataType, codes: tuple[int, int]) -> ir.Value:
        shape = x.shape.numpy()  # type: ignore[union-attr]
        return graph.op("CAST", [x], shape, to, inDataType=codes[0], outDataType=codes[1])

    ids = given("input_ids", [1, T], Role("tokens"), INT64)
    position = given("cache_position", [1], Role("position"), INT64)
    past = {
        kind: given(f"past_{kind}_0", [1, K, S, H], Role(f"{kind}_cache", 0, "BNTH"))  # type: ignore[arg-type]
        for kind in ("key", "value")
    }
    axis: dict[str, Any] = {"axis": 0, "batchDims": 0}
    where = cast(position, INT32, (4, 2))
    zero = graph.constant("zero", np.int32([0]))
    start = graph.op("CONCATENATION", [zero, zero, where, zero], [4], INT32, "start", axis=0)
    positions = graph.op("ADD", [position, graph.constant("steps", np.arange(T))], [T], INT64)
    outputs = {}
    seen_by_all = []
    for kind, seed in (("key", 0), ("value", 1)):
        table = graph.constant(f"{kind}s", weights(V, WIDTH, seed=seed))
        rows = graph.op("GATHER", [table, ids], [1, T, WIDTH], FLOAT, **axis)
        if kind == "key":
            one = graph.constant("one", np.float32([1]))
            scale = graph.op("ADD", [cast(positions, FLOAT, (4, 0)), one], [T], FLOAT)
            rows = graph.op("MUL", [rows, reshape(scale, [1, T, 1])], [1, T, WIDTH])
        heads = transpose(reshape(rows, [1, T, K, H]), [1, K, T, H])
        updated = graph.op(
            "DYNAMIC_UPDATE_SLICE", [past[kind], heads, start], [1, K, S, H], FLOAT, f"present_{kind}_0"
        )
        updated.meta["role"] = Role(kind, 0, "BNTH")  # type: ignore[arg-type]
        outputs[kind] = updated
        seen_by_all.append(reshape(transpose(updated, [1, S, K, H], f"{kind}s_by_token"), [1, S, WIDTH]))
    both = graph.op("MUL", seen_by_all, [1, S, WIDTH], FLOAT, "model.layers.0.self_attn/both")
    column = reshape(cast(positions, INT32, (4, 2)), [1, T, 1])
    slots = graph.constant("slots", np.arange(S, dtype=np.int32)[None, None])
    seen = graph.op("LESS_EQUAL", [slots, column], [1, T, S], BOOL)
    summed = graph.op("BATCH_MATMUL", [cast(seen, FLOAT, (6, 0)), both], [1, T, WIDTH], FLOAT)
    logits = graph.fc(summed, graph.constant("head", weights(V, WIDTH, seed=2)), "logits")
    logits.meta["role"] = Role("logits")
    graph.output(logits, outputs["key"], outputs["value"])
    return graph
