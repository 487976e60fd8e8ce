"""Models with one ATTENTION operator in each of its forms, and feeds for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from o2o.contract import Role
from o2o.model import Model
from tests.o2o.graphs import INT64, Graph, feeds, weights

D = 5


@dataclass(frozen=True)
class Form:
    """One ATTENTION. layout: of the caches; none without. mask and pos: their shapes; None for no operand."""

    T: int = 1
    K: int = 2
    G: int = 2
    H: int = 4
    S: int = 7
    layout: str = ""
    rotate: bool = True
    mask: tuple[int, ...] | None = None
    pos: tuple[int, ...] | None = (1,)
    pos_dtype: ir.DataType = INT64
    has_roles: bool = True  # the caches have roles


def attention(form: Form) -> Model:
    """x, the tables, the mask, past_key_0, past_value_0 and pos as inputs; y = ATTENTION + 1."""
    graph, T, H = Graph("decode"), form.T, form.H
    N = form.K * form.G
    x = graph.input("x", [1, T, D])
    shapes = [(N * H, D), (form.K * H, D), (form.K * H, D), (D, N * H)]
    operands: list[ir.Value | None] = [x]
    operands += [graph.constant(f"w{k}", weights(*shape, seed=k)) for k, shape in enumerate(shapes)]
    operands += [graph.input(name, [1, T, H]) if form.rotate else None for name in ("cos", "sin")]
    operands += [graph.input("mask", form.mask) if form.mask is not None else None]
    for kind in ("key", "value") if form.layout else ():
        shape = [1, form.K, form.S, H] if form.layout == "BNTH" else [1, form.S, form.K, H]
        cache = graph.input(f"past_{kind}_0", shape)
        if form.has_roles:
            cache.meta["role"] = Role(f"{kind}_cache", 0, form.layout)  # type: ignore[arg-type]
        operands.append(cache)
    if form.layout:
        operands.append(graph.input("pos", form.pos, form.pos_dtype) if form.pos is not None else None)
    y = graph.op("ATTENTION", operands, [1, T, D], name="attended")
    graph.output(graph.op("ADD", [y, graph.constant("one", np.float32(1))], [1, T, D], name="y"))
    return graph.model()


def feeds_at(model: Model, position: int, seed: int = 0) -> dict[str, np.ndarray]:
    values = feeds(model, seed=seed)
    for value in model.graphs[0].inputs:
        if value.name == "pos":
            count = int(np.prod(value.shape.numpy()))  # type: ignore[union-attr]
            steps = position + np.arange(count).reshape(value.shape.numpy())  # type: ignore[union-attr]
            values["pos"] = steps.astype(value.dtype.numpy())  # type: ignore[union-attr]
    return values
