"""Keys, values and masks that are computed from KV caches, in chunks and token by token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from o2o.errors import ModelError
from o2o.lower.onnx import lower_to_onnx
from tests.o2o.graphs import BOOL, FLOAT, INT32, Graph, weights
from tests.o2o.lower.onnx.running import FORMS
from tests.o2o.lower.onnx.test_attention import LOWEST, Shape, attention_model, compare

pytest.importorskip("onnxruntime")

K, S, H, N = 2, 13, 16, 4
Fields = dict[str, Any]


def cached(graph: Graph, kind: str) -> ir.Value:
    """The written cache [1, K, S, H]."""
    return next(node.outputs[0] for node in graph.ir if node.outputs[0].name == f"present_{kind}_0")


def ints(graph: Graph, *numbers: int) -> ir.Value:
    return graph.constant("ints", np.int32(numbers))


def one_head_for_all(graph: Graph, position: ir.Value) -> Fields:
    """As in DiffLlama: a part of the values, repeated."""
    halves = [graph.value(name, [1, 1, S, H]) for name in ("first", "second")]
    graph.node(
        "SPLIT",
        [graph.constant("axis", np.int32(1)), cached(graph, "value")],
        halves,
        [ir.AttrInt64("numSplits", 2)],
    )
    return {"v": graph.op("BROADCAST_TO", [halves[1], ints(graph, 1, K, S, H)], [1, K, S, H])}


def projected_mask(graph: Graph, position: ir.Value) -> Fields:
    """As in Doge: scores get a projection of the values; the position hides later rows."""
    by_row = graph.op("TRANSPOSE", [cached(graph, "value"), ints(graph, 0, 2, 1, 3)], [1, S, K, H])
    rows = graph.op("RESHAPE", [by_row, ints(graph, 1, S, K * H)], [1, S, K * H])
    scores = graph.fc(rows, graph.constant("projection", weights(N, K * H, seed=11)), "projected")
    scores = graph.op("TANH", [scores], [1, S, N])
    scores = graph.op("TRANSPOSE", [scores, ints(graph, 0, 2, 1)], [1, N, S])
    scores = graph.op("RESHAPE", [scores, ints(graph, 1, N, 1, S)], [1, N, 1, S])
    where = graph.op("CAST", [position], [1], INT32)
    later = graph.op("GREATER", [graph.constant("steps", np.int32(range(S))), where], [S], BOOL)
    hidden = graph.constant("lowest", np.float32(LOWEST))
    return {"mask": graph.op("SELECT_V2", [later, hidden, scores], [1, N, 1, S], FLOAT)}


def normalized_keys(graph: Graph, position: ir.Value) -> Fields:
    """Keys are normalized after they were cached; values are scaled by a mean of their keys."""
    keys = cached(graph, "key")
    normed = graph.op(
        "RMS_NORM", [keys, graph.constant("norm", weights(H, seed=12))], [1, K, S, H], epsilon=1e-5
    )
    mean = graph.op("MEAN", [keys, ints(graph, 3)], [1, K, S, 1], keepDims=True)
    return {"k": normed, "v": graph.op("MUL", [cached(graph, "value"), mean], [1, K, S, H])}


COMPUTED: dict[str, Callable[[Graph, ir.Value], Fields]] = {
    "values": one_head_for_all,
    "mask": projected_mask,
    "keys and values": normalized_keys,
    "values and sinks": lambda graph, position: (
        one_head_for_all(graph, position) | {"sinks": graph.constant("sinks", np.float32([0.5, -1, 2, 0]))}
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rotation", [0, 16])
@pytest.mark.parametrize("name", COMPUTED)
def test_what_is_computed_from_caches(name: str, rotation: int, form: str) -> None:
    compare(Shape(R=rotation), COMPUTED[name], form)


def reversed_rows(graph: Graph, position: ir.Value) -> Fields:
    bounds = [ints(graph, 0, 0, -1, 0), ints(graph, 1, K, -S - 1, H), ints(graph, 1, 1, -1, 1)]
    masks = dict.fromkeys(("beginMask", "endMask", "ellipsisMask", "newAxisMask", "shrinkAxisMask"), 0)
    return {"v": graph.op("STRIDED_SLICE", [cached(graph, "value"), *bounds], [1, K, S, H], **masks)}


def summed_rows(graph: Graph, position: ir.Value) -> Fields:
    total = graph.op("SUM", [cached(graph, "value"), ints(graph, 2)], [1, K, 1, H], keepDims=True)
    return {"v": graph.op("ADD", [cached(graph, "value"), total], [1, K, S, H])}


def test_an_axis_of_the_size_of_the_rows() -> None:
    """S = H: a transpose of both is no transpose of rows alone."""

    def turned(graph: Graph, position: ir.Value) -> Fields:
        return {"v": graph.op("TRANSPOSE", [cached(graph, "value"), ints(graph, 0, 1, 3, 2)], [1, K, H, H])}

    with pytest.raises(ModelError, match="is not computed row by row from caches"):
        lower_to_onnx(attention_model(Shape(S=H), turned))


@pytest.mark.parametrize("mixing", [reversed_rows, summed_rows])
def test_rows_that_are_mixed(mixing: Callable[[Graph, ir.Value], Fields]) -> None:
    """Later rows would be seen."""
    with pytest.raises(ModelError) as caught:
        lower_to_onnx(attention_model(Shape(), mixing))
    assert "depends on other tokens" in str(caught.value) or "row by row" in str(caught.value)
