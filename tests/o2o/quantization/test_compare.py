"""What two files say of the same weights."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from o2o import formats
from o2o.errors import ModelError
from o2o.quantization.compare import compare, dequantized
from o2o.quantization.quantize import quantize
from o2o.quantization.recipes import RECIPES, find_recipe
from tests.o2o.graphs import weights
from tests.o2o.quantization.models import D, F, constants, language_model, meaning

STORED = {
    "dynamic_int8": {"int8"},
    "weight_only_int8": {"int8"},
    "dynamic_int4_block32": {"int8", "int4 in blocks of 32"},
    # rows of 64 are no whole block of 128
    "dynamic_int4_block128": {"int8", "int4 in blocks of 32", "int4 in blocks of 128"},
    "dynamic_int4_block32_head": {"int8", "int4 in blocks of 32"},
    "float16": {"float16"},
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("recipe", sorted(RECIPES.keys() - {"none"}))
def test_errors_are_those_of_quantizing(recipe, tied):
    before, after = language_model(tied=tied), language_model(tied=tied)
    done = {one.name: one for one in quantize(after, find_recipe(recipe))}
    after = formats.loads(formats.dumps(after))
    result = compare(before, after)
    apart = [one.name for one in result if one.name not in constants(before)]
    assert apart == (["embed_head"] if tied and recipe.endswith("_head") else [])
    names = [one.name for one in result if one.name not in apart]
    assert names == [name for name in constants(before) if name in done]
    assert {one.stored[1] for one in result} == STORED[recipe]
    for one in result:
        known = done[one.name]
        assert one.stored[0] == "float32"
        assert one.shape == known.shape
        assert known.before == (0 if one.name in apart else one.bytes[0])
        assert one.bytes[1] < one.bytes[0] * (0.6 if recipe == "float16" else 0.5)
        assert one.error.rms == pytest.approx(known.tensor.error.rms, rel=1e-4)
        assert one.error.max == pytest.approx(known.tensor.error.max, rel=1e-4)


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_what_constants_stand_for(recipe):
    model = language_model()
    quantize(model, find_recipe(recipe))
    model = formats.loads(formats.dumps(model))
    for value in constants(model).values():
        np.testing.assert_array_equal(dequantized(value), meaning(value))


def test_zero_points_and_a_scale_for_all():
    model = language_model()
    quantize(model, find_recipe("dynamic_int8"))
    value = constants(model)["up"]
    quantization = value.meta["fields"]["quantization"]
    quantization.scale, quantization.zeroPoint = np.array([0.5], np.float32), np.array([3])
    stored = value.const_value.numpy().astype(np.float32)
    np.testing.assert_array_equal(dequantized(value), (stored - 3) / 2)


def test_numbers_whose_squares_are_no_float32_count():
    before, after = language_model(), language_model()
    for model in (before, after):
        tiny = ir.Tensor(1e-25 * weights(F, D), ir.DataType.FLOAT, name="up")
        for graph in model.graphs:
            graph.initializers["up"].const_value = tiny
    quantize(after, find_recipe("dynamic_int8"))  # to zeros
    error = {one.name: one.error for one in compare(before, formats.loads(formats.dumps(after)))}["up"]
    assert (error.rms, error.max) == (1, 1)


def test_nothing_to_compare():
    assert compare(language_model(), language_model()) == []
    model = language_model()
    quantize(model, find_recipe("dynamic_int8"))
    assert compare(model, model) == []


def test_the_other_way_round():
    """Files given in the wrong order are not called the same."""
    before, after = language_model(), language_model()
    quantize(after, find_recipe("dynamic_int8"))
    there, back = compare(before, after), compare(after, before)
    assert [one.name for one in there] == [one.name for one in back]
    for one, other in zip(there, back, strict=True):
        assert (one.stored[::-1], one.bytes[::-1]) == (other.stored, other.bytes)
        assert one.error.largest_error == other.error.largest_error > 0


def test_a_model_of_something_else():
    before, after = language_model(), language_model()
    quantize(after, find_recipe("float16"))
    graph = before.graphs[0]
    up = graph.initializers["up"]
    up.name = "other"
    for other in before.graphs[1:]:
        del other.initializers["up"]
    with pytest.raises(ModelError, match="the first model has no up, which is float16 in the second"):
        compare(before, after)
    up.name = "up"
    down = graph.initializers["down"]
    up.const_value, up.shape = down.const_value, down.shape
    with pytest.raises(ModelError, match=r"up is \[64, 128\] in the first model, \[128, 64\] in the second"):
        compare(before, after)
