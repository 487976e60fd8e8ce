"""The numbers of rows that are fast."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from o2o import formats
from o2o.model import Model, Signature
from o2o.quantization.quantize import quantize
from o2o.quantization.recipes import RECIPES
from o2o.rewriting.builder import Builder
from runtime_py.engines.litert.row_tile import draft_lengths, first_step, row_tile


def product(rows: int, columns: int, op_type: str = "FULLY_CONNECTED") -> Model:
    graph = ir.Graph([], [], nodes=[], name="main")
    x = ir.Value(name="x", shape=ir.Shape([1, columns]), type=ir.TensorType(ir.DataType.FLOAT))
    graph.inputs.append(x)
    op = Builder(graph)
    weights = op.constant(np.random.default_rng(0).normal(size=(rows, columns)).astype(np.float32), "w")
    y = op.node(op_type, [x, weights, None], [1, rows], keepNumDims=True)
    graph.outputs.append(y)
    return Model("circle", [graph], [Signature("main", graph, {"x": x}, {"y": y})])


@pytest.mark.parametrize("tile", [3, 4, 5, 7, 8])
def test_a_tile_ends_where_the_time_rises_most(tile: int) -> None:
    random = np.random.default_rng(tile)
    seconds = {rows: (-(-rows // tile) + random.uniform(0, 0.1)) for rows in range(2, 10)}
    assert first_step(seconds) == tile


def test_times_that_rise_evenly_have_no_step() -> None:
    assert first_step({rows: 10.0 + rows for rows in range(2, 10)}) == 0


@pytest.mark.parametrize("recipe", ["", "dynamic_int8", "dynamic_int4_block32"])
def test_the_weights_of_a_model_are_measured(recipe: str) -> None:
    model = product(512, 256)
    if recipe:
        quantize(model, RECIPES[recipe])
    before = formats.dumps(model)
    assert row_tile(model) in range(2, 9)
    first, second, third = draft_lengths(model)
    assert (second, third) == (2 * first, 4 * first)
    assert 2 <= first <= 7
    assert formats.dumps(model) == before


def test_small_weights_have_the_default() -> None:
    assert draft_lengths(product(16, 16)) == (4, 8, 16)
    assert draft_lengths(Model("circle", [])) == (4, 8, 16)
