"""A little language model for the tests of quantization, and what a quantized constant stands for."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from o2o import formats
from o2o.contract import Role
from o2o.model import Format, Model, shape_of
from o2o.rewriting.deduplicate_constants import deduplicate_constants
from tests.o2o.graphs import FLOAT, INT64, Graph, sign, weights

V, D, F = 128, 64, 128  # words, hidden size, that in the middle


def language_model(format: Format = "circle", tied: bool = False, tokens: tuple[int, ...] = (4, 1)) -> Model:
    """Signatures prefill and decode over shared weights: logits of two layers on embedded tokens."""
    graphs = []
    for name, T in zip(("prefill", "decode"), tokens, strict=True):
        graph = Graph(name)
        ids = graph.input("input_ids", [1, T], INT64)
        ids.meta["role"] = Role("tokens")
        table = graph.constant("embed", weights(V, D))
        rows = {"axis": 0, "batchDims": 0}
        x = graph.op("GATHER", [table, ids], [1, T, D], FLOAT, "hidden", **rows)
        x = graph.fc(x, graph.constant("up", weights(F, D, seed=1)), "middle")
        x = graph.op("TANH", [x], [1, T, F], name="active")
        x = graph.fc(x, graph.constant("down", weights(D, F, seed=2)), "last")
        head = table if tied else graph.constant("head", weights(V, D, seed=3))
        logits = graph.fc(x, head, "logits")
        logits.meta["role"] = Role("logits")
        graph.output(logits)
        graphs.append(graph)
    model = Model(format, [graph.ir for graph in graphs])
    for graph in graphs:
        sign(model, graph.ir)
    deduplicate_constants(model)
    return formats.loads(formats.dumps(model))


def constants(model: Model, graph: int = 0) -> dict[str, ir.Value]:
    """The matrices that operators of a graph use, by name."""
    result = model.graphs[graph].initializers.items()
    return {name: value for name, value in result if len(shape_of(value)) == 2 and value.uses()}


def integers(value: ir.Value) -> np.ndarray:
    """The stored numbers of a quantized constant, int8."""
    assert value.const_value is not None
    return value.const_value.numpy().astype(np.int8)


def meaning(value: ir.Value) -> np.ndarray:
    """What a constant stands for, float32, after the schema's own words: scale times integer."""
    assert value.const_value is not None
    numbers = value.const_value.numpy().astype(np.float32)
    if value.dtype in (FLOAT, ir.DataType.FLOAT16):
        return numbers
    if "quantization_constants" in value.meta:
        scales = value.meta["quantization_constants"]["scales"].const_value.numpy().astype(np.float32)
        return (numbers.reshape(*scales.shape, -1) * scales[..., None]).reshape(numbers.shape)
    return numbers * value.meta["fields"]["quantization"].scale[:, None]
