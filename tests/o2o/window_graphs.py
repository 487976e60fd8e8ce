"""A language model of two layers, one with a sliding window, by hand; and its logits in numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from o2o.contract import Role
from o2o.model import Model
from o2o.operators.core_attention import CoreAttention
from o2o.rewriting.window_caches import shrink_window_caches
from tests.o2o.graphs import INT32, Graph, sign, weights

V, D, N, K, H = 23, 16, 2, 1, 8
S, WINDOW, T = 48, 5, 4
WINDOWS = (WINDOW, 0)
"""The window of each layer; 0 for none."""


def window_model(
    rows: int | None = None,
    lengths: Sequence[int] = (T, 1),
    windows: Sequence[int] = WINDOWS,
    without_caches: int = 0,
) -> Model:
    """A graph for each of `lengths`; with `rows`, window caches of that number of rows.

    without_caches: T of one more prefill, which starts at position 0 and returns its rows; 0 for none.
    """
    names = [f"prefill_{length}" if length > 1 else "decode" for length in lengths]
    built = [_graph(name, length, windows) for name, length in zip(names, lengths, strict=True)]
    built += [_graph("prefill", without_caches, windows, False)] if without_caches else []
    model = Model("circle", [graph.ir for graph in built])
    for graph in built:
        sign(model, graph.ir)
    if rows is not None:
        shrink_window_caches(model, rows)
    return model


def logits_of(ids: Sequence[int], windows: Sequence[int] = WINDOWS) -> np.ndarray:
    """The logits after each of `ids`, [P, V], computed in numpy from all tokens at once."""
    P = len(ids)
    x = weights(V, D)[list(ids)] + weights(S, D, seed=1)[:P]
    query, key = np.arange(P)[:, None], np.arange(P)
    for layer, window in enumerate(windows):
        hidden = (key > query) | (key <= query - (window or P))
        q, k, v = (x @ _matrix(layer, name, heads * H).T for name, heads in _HEADS.items())
        heads = []
        for head in range(N):
            one = q[:, head * H : (head + 1) * H] @ k.T * H**-0.5
            one = np.where(hidden, -np.inf, one)
            one = np.exp(one - one.max(1, keepdims=True))
            heads.append(one / one.sum(1, keepdims=True) @ v)
        x = x + np.concatenate(heads, 1) @ _matrix(layer, "out", D).T
    return x @ weights(V, D, seed=2).T


_HEADS = {"q": N, "k": K, "v": K}


def _matrix(layer: int, name: str, rows: int) -> np.ndarray:
    return weights(rows, D, seed=10 * layer + 3 + ["q", "k", "v", "out"].index(name)) * 0.3


def _graph(name: str, length: int, windows: Sequence[int], has_caches: bool = True) -> Graph:
    graph = Graph(name)

    def given(name: str, shape: Sequence[int], role: Role, **dtype: ir.DataType) -> ir.Value:
        value = graph.input(name, shape, **dtype)
        value.meta["role"] = role
        return value

    def reshape(x: ir.Value, *shape: int) -> ir.Value:
        return graph.op("RESHAPE", [x, graph.constant("shape", np.int32(shape))], shape)

    def by_head(x: ir.Value, heads: int) -> ir.Value:
        split = reshape(x, 1, length, heads, H)
        order = graph.constant("order", np.int32([0, 2, 1, 3]))
        return graph.op("TRANSPOSE", [split, order], [1, heads, length, H])

    ids = given("ids", [1, length], Role("tokens"), dtype=INT32)
    if has_caches:
        position = given("position", [1], Role("position"), dtype=INT32)
    else:
        position = graph.constant("position", np.int32([0]))
    zero = graph.constant("zero", np.int32([0]))
    start = graph.op("CONCATENATION", [zero, zero, position, zero], [4], INT32, "start", axis=0)
    steps = graph.constant("steps", np.arange(length, dtype=np.int32))
    positions = graph.op("ADD", [position, steps], [length], INT32)
    rows: dict[str, int] = {"axis": 0, "batchDims": 0}
    words, places = graph.constant("words", weights(V, D)), graph.constant("places", weights(S, D, seed=1))
    word = graph.op("GATHER", [words, ids], [1, length, D], **rows)
    place = reshape(graph.op("GATHER", [places, positions], [length, D], **rows), 1, length, D)
    x = graph.op("ADD", [word, place], [1, length, D])
    updated = []
    for layer, window in enumerate(windows):
        heads = {
            which: by_head(graph.fc(x, graph.constant(f"w{which}_{layer}", matrix), f"{which}_{layer}"), n)
            for which, n in _HEADS.items()
            for matrix in [_matrix(layer, which, n * H)]
        }
        caches = []
        for kind, new in (("key", heads["k"]), ("value", heads["v"])):
            role = Role(f"{kind}_cache", layer, "BNTH", window or None)  # type: ignore[arg-type]
            if not has_caches:
                new.meta["role"] = role.output_role
                new.name = f"present_{kind}_{layer}"
                caches.append(new)
                continue
            past = given(f"past_{kind}_{layer}", [1, K, S, H], role)
            cache = graph.op(
                "DYNAMIC_UPDATE_SLICE", [past, new, start], [1, K, S, H], name=f"present_{kind}_{layer}"
            )
            cache.meta["role"] = role.output_role
            caches.append(cache)
        updated += caches
        node = CoreAttention(heads["q"], *caches, position, scale=H**-0.5, window=window).build(f"y_{layer}")
        graph.ir.append(node)
        attended = reshape(node.outputs[0], 1, length, D)
        out = graph.fc(attended, graph.constant(f"o_{layer}", _matrix(layer, "out", D)), f"out_{layer}")
        x = graph.op("ADD", [x, out], [1, length, D])
    logits = graph.fc(x, graph.constant("head", weights(V, D, seed=2)), "logits")
    logits.meta["role"] = Role("logits")
    graph.output(logits, *updated)
    return graph
