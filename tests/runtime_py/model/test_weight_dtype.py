"""The display name of a model's weight dtype."""

from __future__ import annotations

import pytest

from o2o import formats
from o2o.quantization.quantize import quantize
from o2o.quantization.recipes import find_recipe
from runtime_py.model.weight_dtype import onnx_weight_dtype, weight_dtype
from tests.runtime_py import toy
from tests.runtime_py.toy import Toy
from tests.runtime_py.toy_onnx import write_onnx


def test_the_dtype_of_most_bytes():
    assert weight_dtype(formats.loads(Toy(vocab=300).file)) == "float32"


@pytest.mark.parametrize("recipe", ["dynamic_int8", "float16"])
def test_the_recipe_that_is_recorded(recipe, monkeypatch):
    monkeypatch.setattr(toy, "HEAD", 64)
    monkeypatch.setattr(toy, "WIDTH", 128)
    model = formats.loads(Toy(vocab=300).file)
    quantize(model, find_recipe(recipe, None, None))
    assert weight_dtype(model) == recipe.replace("_", " ")


def test_onnx(tmp_path):
    assert onnx_weight_dtype(write_onnx(Toy(vocab=300), tmp_path / "model.onnx")) == "float32"
