"""Quantized weights in ONNX stand for the numbers that they stand for in Circle."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest

from o2o import formats
from o2o.model import Model
from o2o.quantization.quantize import quantize
from o2o.quantization.recipes import find_recipe
from tests.o2o.lower.onnx.decoders import Shape, answers, decoder, on_litert
from tests.o2o.lower.onnx.running import FORMS, Running, checked, chunks
from tests.tolerances import assert_close

pytest.importorskip("onnxruntime")

RECIPES = (
    "dynamic_int8",
    "weight_only_int8",
    "dynamic_int4_block32",
    "dynamic_int4_block128",
    "float16",
)
WIDE = Shape(D=128, I=256)  # whole blocks of 128
ODD = Shape(N=6, H=10, D=48, I=72, tied=True)  # no whole blocks: rows are filled up


def quantized(shape: Shape, recipe: str, **parts: str) -> Model:
    model = decoder(shape)
    done = quantize(model, find_recipe(recipe, **parts))
    assert any(one.scheme is not None for one in done)
    return formats.loads(formats.dumps(model))


def exactly(lowered: ir.Model) -> ir.Model:
    """With MatMulNBits in floats, so that only the weights are rounded."""
    for node in lowered.graph:
        if node.op_type == "MatMulNBits":
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 0)
    return lowered


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [Shape(), WIDE, ODD], ids=["32", "128", "odd"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_weights_mean_the_same(recipe: str, shape: Shape, form: str) -> None:
    ids = np.random.default_rng(3).integers(0, shape.V, shape.S).tolist()
    expected = answers(quantized(shape, recipe), ids)
    running = Running(exactly(checked(quantized(shape, recipe), form)))
    for start, stop in chunks(shape.S, [5]):
        logits = running.step(ids[start:stop], start).reshape(-1)
        assert_close(logits, expected[stop - 1])


def with_zero_points(recipe: str) -> Model:
    """A model as raise.circle.py makes it of uint8: other integers than 0 stand for 0."""
    model = quantized(Shape(tied=True), recipe)
    for value in model.graphs[0].initializers.values():
        parameters = value.meta.get("fields", {}).get("quantization")
        if parameters is not None and parameters.scale is not None:
            parameters.zeroPoint = np.arange(len(parameters.scale), dtype=np.int64) % 7 - 3
    return formats.loads(formats.dumps(model))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("recipe", ["dynamic_int8", "weight_only_int8"])
def test_zero_points_count(recipe: str, form: str) -> None:
    ids = np.random.default_rng(3).integers(0, Shape().V, Shape().S).tolist()
    expected = answers(with_zero_points(recipe), ids)
    logits = Running(checked(with_zero_points(recipe), form)).step(ids, 0).reshape(-1)
    assert_close(logits, expected[-1])
    assert np.abs(expected - answers(quantized(Shape(tied=True), recipe), ids)).max() > 0.1


@pytest.mark.parametrize("recipe", ["dynamic_int8", "dynamic_int4_block32"])
def test_integer_arithmetic_is_near(recipe: str) -> None:
    """ONNX Runtime quantizes what weights are multiplied with, and loses no more by it than LiteRT."""
    ids = np.random.default_rng(3).integers(0, WIDE.V, WIDE.S).tolist()
    expected = answers(quantized(WIDE, recipe), ids)
    running = Running(checked(quantized(WIDE, recipe), "ort", logits="all"))
    ours = np.concatenate([running.step(ids[a:b], a)[0] for a, b in chunks(WIDE.S, [5])])
    theirs = on_litert(quantized(WIDE, recipe), ids)
    lost, lost_there = (np.square(found - expected).mean() ** 0.5 for found in (ours, theirs))
    assert 0 < lost < 1.1 * lost_there


def test_int4_embedding_and_head() -> None:
    shape = Shape(tied=True)
    ids = np.random.default_rng(3).integers(0, shape.V, shape.S).tolist()
    parts = {"embedding": "int4_block32", "lm_head": "int4_block32"}
    expected = answers(quantized(shape, "dynamic_int4_block32", **parts), ids)
    for form in FORMS:
        running = Running(exactly(checked(quantized(shape, "dynamic_int4_block32", **parts), form)))
        logits = running.step(ids, 0).reshape(-1)
        assert_close(logits, expected[-1])


@pytest.mark.parametrize("form", FORMS)
def test_a_tied_matrix_is_there_once(form: str) -> None:
    shape = Shape(tied=True)
    lowered = checked(quantized(shape, "dynamic_int8"), form)
    sizes = [int(np.prod(list(v.shape))) for v in lowered.graph.initializers.values()]  # type: ignore[arg-type]
    assert sizes.count(shape.V * shape.D) == 1


def test_what_was_done_is_told() -> None:
    metadata = json.loads(checked(quantized(WIDE, "dynamic_int8"), "ort").metadata_props["o2o.quantization"])
    assert metadata["steps"][0]["recipe"] == "dynamic_int8"


def test_no_reshapes_between_quantized_products() -> None:
    kinds = [node.op_type for node in checked(quantized(WIDE, "dynamic_int8"), "ort").graph]
    assert kinds.count("MatMulNBits") == 2 * 5 + 1
    assert kinds.count("Reshape") == 1, "of the row that is looked up"
    assert kinds.count("GatherBlockQuantized") == 1
