"""Decoders with scattered operators, as other exporters write them: no contract, names without a meaning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir

from o2o.contract import Role
from o2o.model import Model
from tests.o2o.graphs import BOOL, FLOAT, INT32, Graph, sign, weights

V, D, K, H, S = 11, 8, 2, 4, 6


@dataclass(frozen=True)
class Form:
    """How a decoder is written. `mask`: from the position, or an input of this dtype."""

    layers: int = 2
    key_layout: str = "BNTH"
    value_layout: str = "BNTH"
    mask: str = "position"  # float, bool
    rows_only: bool = False  # returns the new rows, not the caches
    logits: bool = True
    window: int = 0  # in the mask from the position


def decoder(form: Form, lengths: Sequence[int] = (1,)) -> tuple[Model, dict[ir.Value, Role]]:
    """A model with a signature for each number of tokens, and the roles that are right."""
    roles: dict[ir.Value, Role] = {}
    graphs = [_graph(form, T, roles) for T in lengths]
    model = Model("circle", [graph.ir for graph in graphs])
    for graph in graphs:
        sign(model, graph.ir)
    return model, roles


def _graph(form: Form, T: int, roles: dict[ir.Value, Role]) -> Graph:
    graph = Graph(f"entry_{T}")
    count = 0

    def given(shape: Sequence[int], dtype: ir.DataType, role: Role) -> ir.Value:
        nonlocal count
        value = graph.input(f"args_{count}", shape, dtype)
        roles[value], count = role, count + 1
        return value

    def reshape(x: ir.Value, shape: Sequence[int]) -> ir.Value:
        return graph.op("RESHAPE", [x, graph.constant("shape", np.int32(shape))], shape, x.dtype)

    def arrange(x: ir.Value, old: str, new: str) -> ir.Value:
        if old == new:
            return x
        order = [old.index(axis) for axis in new]
        shape = [x.shape[axis] for axis in order]  # type: ignore[index]
        return graph.op("TRANSPOSE", [x, graph.constant("order", np.int32(order))], shape)

    def linear(x: ir.Value, width: int) -> ir.Value:
        w = graph.constant("w", weights(width, D, seed=len(list(graph.ir))))
        return graph.op("FULLY_CONNECTED", [x, w, None], [1, T, width], keepNumDims=True)

    # The position comes first, and caches by layer from the last: order says nothing.
    position = given([1], INT32, Role("position"))
    caches = {
        (kind, layer): given(
            [{"B": 1, "N": K, "T": S, "H": H}[axis] for axis in layout],
            FLOAT,
            Role(f"{kind}_cache", layer, layout, form.window or None),  # type: ignore[arg-type]
        )
        for layer in reversed(range(form.layers))
        for kind, layout in (("value", form.value_layout), ("key", form.key_layout))
    }
    ids = given([1, T], INT32, Role("tokens"))
    embedding = graph.constant("embedding", weights(V, D))
    x = graph.op("GATHER", [embedding, ids], [1, T, D], axis=0, batchDims=0)
    angles = graph.op("CAST", [position], [1], FLOAT, inDataType=2, outDataType=0)
    sine = reshape(graph.op("SIN", [angles], [1]), [1, 1, 1, 1])
    if form.mask == "position":
        last = reshape(position, [1, 1, 1, 1])
        queries = graph.op(
            "ADD",
            [last, graph.constant("t", np.arange(T, dtype=np.int32).reshape(1, 1, T, 1))],
            [1, 1, T, 1],
            INT32,
        )
        keys = graph.constant("keys", np.arange(S, dtype=np.int32).reshape(1, 1, 1, S))
        hidden = graph.op("GREATER", [keys, queries], [1, 1, T, S], BOOL)
        if form.window:
            size = graph.constant("window", np.int32(form.window))
            oldest = graph.op("SUB", [queries, size], [1, 1, T, 1], INT32)
            far = graph.op("LESS_EQUAL", [keys, oldest], [1, 1, T, S], BOOL)
            hidden = graph.op("LOGICAL_OR", [hidden, far], [1, 1, T, S], BOOL)
        mask = graph.op("CAST", [hidden], [1, 1, T, S], FLOAT, inDataType=6, outDataType=0)
        mask = graph.op("MUL", [mask, graph.constant("low", np.float32(-1e9))], [1, 1, T, S])
    else:
        mask = given([1, 1, T, S], FLOAT if form.mask == "float" else BOOL, Role("mask"))
    outputs = []
    for layer in range(form.layers):
        rows = {}
        for kind, layout in (("key", form.key_layout), ("value", form.value_layout)):
            new = arrange(reshape(linear(x, K * H), [1, T, K, H]), "BTNH", "BNTH")
            if kind == "key":
                new = graph.op("MUL", [new, sine], [1, K, T, H])
            new = arrange(new, "BNTH", layout)
            cache = caches[kind, layer]
            zero = graph.constant("zero", np.int32([0]))
            start = graph.op(
                "CONCATENATION", [position if a == "T" else zero for a in layout], [4], INT32, axis=0
            )
            updated = graph.op("DYNAMIC_UPDATE_SLICE", [cache, new, start], list(cache.shape))  # type: ignore[arg-type]
            output = new if form.rows_only else updated
            roles[output] = Role(kind, layer, layout, form.window or None)  # type: ignore[arg-type]
            outputs.append(output)
            rows[kind] = arrange(updated, layout, "BNTH")
        q = arrange(reshape(linear(x, K * H), [1, T, K, H]), "BTNH", "BNTH")
        scores = graph.op("BATCH_MATMUL", [q, rows["key"]], [1, K, T, S], adjointLhs=False, adjointRhs=True)
        if form.mask == "bool":
            low = graph.constant("low", np.full((1, 1, 1, 1), -1e9, np.float32))
            scores = graph.op("SELECT_V2", [mask, scores, low], [1, K, T, S])
        else:
            scores = graph.op("ADD", [scores, mask], [1, K, T, S])
        p = graph.op("SOFTMAX", [scores], [1, K, T, S], beta=1.0)
        y = graph.op("BATCH_MATMUL", [p, rows["value"]], [1, K, T, H], adjointLhs=False, adjointRhs=False)
        y = reshape(arrange(y, "BNTH", "BTNH"), [1, T, K * H])
        x = graph.op("ADD", [x, linear(y, D)], [1, T, D])
    if form.logits:
        logits = linear(x, V)
        roles[logits] = Role("logits")
        outputs.append(logits)
    graph.output(*outputs[::-1])
    assert prod(x.shape.numpy()) == T * D  # type: ignore[union-attr]
    return graph
