"""Quantized packages on LiteRT, with packed weights in a file, in memory, and packed for each signature."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from o2o import formats
from o2o.model import Model, shape_of
from o2o.quantization.quantize import quantize
from o2o.quantization.recipes import RECIPES, find_recipe
from o2o.rewriting.deduplicate_constants import deduplicate_constants
from o2o.streams.disk_cache import DiskCache
from runtime_py.engines import prepared_artifacts
from runtime_py.engines.litert import compiled_model
from runtime_py.engines.litert.engine import LiteRtEngine
from runtime_py.engines.litert.lowered_file import lower_file
from runtime_py.engines.litert.prepare import PreparedModel
from runtime_py.engines.model_file import ModelFile
from runtime_py.model.contract import Contract
from tests.o2o.quantization.models import meaning
from tests.runtime_py import toy
from tests.runtime_py.engines.litert.test_prepare import prepare
from tests.runtime_py.toy import Toy

VOCAB = 300
TOKENS = [7, 299, 3, 5, 8, 1, 0]
STORED = {
    "dynamic_int8": ir.DataType.INT8,
    "weight_only_int8": ir.DataType.INT8,
    "dynamic_int4_block32": ir.DataType.INT4,
    "dynamic_int4_block128": ir.DataType.INT4,
    "dynamic_int4_block32_head": ir.DataType.INT4,
    "float16": ir.DataType.FLOAT16,
}


@pytest.fixture(params=["circle", "tflite"])
def quantized_toy(request, tmp_path, monkeypatch):
    """Quantizes all tables of the toy by a recipe: (the file, the toy with the dequantized numbers)."""

    def make(recipe: str) -> tuple[Path, Toy]:
        monkeypatch.setattr(toy, "HEAD", 64)
        monkeypatch.setattr(toy, "WIDTH", 128)
        known = Toy(vocab=VOCAB, cached_lengths=[3, 2])
        model = formats.loads(known.file)
        model.format = request.param
        deduplicate_constants(model)
        tables = {id(table): name for name, table in tables_of(model, known).items()}
        matrices = RECIPES[recipe].matrices
        scheme = matrices.name if matrices is not None and matrices.block else None
        quantize(model, find_recipe(recipe, scheme, scheme))
        for value in model.graphs[0].initializers.values():
            if id(value) in tables:
                assert value.dtype == STORED[recipe]
                setattr(known, tables[id(value)], meaning(value))
        path = tmp_path / f"model.{request.param}"
        formats.save(model, path)
        return path, known

    return make


def tables_of(model: Model, known: Toy) -> dict[str, ir.Value]:
    """The values of the first graph that are the toy's tables, by name."""
    tables = {}
    for value in model.graphs[0].initializers.values():
        for name in ("keys", "values", "lm_head"):
            if shape_of(value) == (VOCAB, 128) and np.array_equal(
                value.const_value.numpy(), vars(known)[name]
            ):
                tables[name] = value
    assert len(tables) == 3
    return tables


def answers(prepared: PreparedModel) -> np.ndarray:
    """Logits after 1, 2, 3, ... tokens, which go through all signatures."""
    engine = LiteRtEngine(prepared.open(), Contract.parse(prepared.lowered.contract), packed=prepared.packed)
    session = engine.open_session()
    logits = [session.prefill(TOKENS[:count]) for count in range(1, len(TOKENS) + 1)]
    engine.close()
    return np.stack(logits)


@pytest.mark.parametrize("recipe", sorted(STORED))
def test_every_recipe_and_every_way_to_load(quantized_toy, recipe, tmp_path, monkeypatch):
    file, known = quantized_toy(recipe)
    monkeypatch.setattr(prepared_artifacts, "MIN_BYTES", 0)
    cache, log_lines = DiskCache(tmp_path / "cache"), []
    packed = prepare(file, cache, log_lines.append)
    assert packed.packed is not None, log_lines
    unpacked = prepare(file, None, log_lines.append)
    logits = answers(packed)
    np.testing.assert_array_equal(answers(prepare(file, cache, log_lines.append)), logits)
    np.testing.assert_array_equal(answers(unpacked), logits)
    monkeypatch.setattr(compiled_model, "IN_MEMORY", "")
    np.testing.assert_array_equal(answers(unpacked), logits)
    expected = np.stack([known.logits(TOKENS[: index + 1]) for index in range(len(TOKENS))])
    lost = np.linalg.norm(logits - expected, axis=1) / np.linalg.norm(expected, axis=1)
    # dynamic kernels quantize activations to 8 bits, scaled by the largest number of a row
    assert lost.max() < (0.02 if recipe.startswith("dynamic") else 1e-6)


def test_every_recipe_is_tested():
    assert STORED.keys() == RECIPES.keys() - {"none"}


@pytest.mark.parametrize(("recipe", "bits"), [("float16", 16), ("weight_only_int8", 8), ("dynamic_int8", 32)])
def test_weights_that_the_graph_makes_float32_need_the_room_of_these(quantized_toy, recipe, bits):
    """Only the head counts: lookup tables are not packed."""
    file, _ = quantized_toy(recipe)
    assert lower_file(ModelFile(file)).growth == VOCAB * 128 * (32 - bits) // 8
