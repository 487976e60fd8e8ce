"""The same recipes by ai-edge-quantizer, Google's own tool: the same bytes, scales and results.

It holds a file in memory several times over (`bench/quantize.py`), which is why ours is not it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ai_edge_quantizer import algorithm_manager, qtyping, quantizer, recipe_manager

from o2o import formats
from o2o.model import Model
from o2o.quantization.quantize import quantize
from o2o.quantization.recipes import find_recipe
from o2o.quantization.schemes import Scheme
from tests.o2o.graphs import FLOAT, INT32, Graph, run, weights
from tests.o2o.quantization.models import constants, integers, meaning
from tests.tolerances import assert_close

V, D, F = 64, 256, 128
INT4 = ("int4_block32", "int4_block128")


def language_model() -> Model:
    """Logits of embedded tokens, with EMBEDDING_LOOKUP: of GATHER it leaves the table as it is."""
    graph = Graph("main")
    ids = graph.input("input_ids", [8], INT32)
    x = graph.op("EMBEDDING_LOOKUP", [ids, graph.constant("embed", weights(V, D))], [8, D], FLOAT, "hidden")
    x = graph.fc(x, graph.constant("w", weights(F, D, seed=1)), "middle")
    graph.output(graph.fc(x, graph.constant("head", weights(V, F, seed=2)), "logits"))
    return graph.model(format="tflite")


def theirs(recipe: str, folder: Path) -> Model:
    recipes = recipe_manager.RecipeManager()
    every = {"regex": ".*", "operation_name": qtyping.TFLOperationName.ALL_SUPPORTED}
    if recipe == "dynamic_int8":
        recipes.add_dynamic_config(**every, num_bits=8)
    elif recipe == "weight_only_int8":
        recipes.add_weight_only_config(**every, num_bits=8)
    elif recipe == "float16":
        tensors = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
        how = qtyping.OpQuantizationConfig(
            weight_tensor_config=tensors,
            compute_precision=qtyping.ComputePrecision.FLOAT,
            explicit_dequantize=True,
        )
        cast = algorithm_manager.AlgorithmName.FLOAT_CASTING
        recipes.add_quantization_config(**every, op_config=how, algorithm_key=cast)
    else:
        size = recipe.removeprefix("dynamic_int4_block")
        blocks = getattr(qtyping.QuantGranularity, f"BLOCKWISE_{size}")
        recipes.add_dynamic_config(**every, num_bits=4, granularity=blocks)
    file = folder / "model.tflite"
    formats.save(language_model(), file)
    done = quantizer.Quantizer(str(file), recipes.get_quantization_recipe()).quantize()
    return formats.loads(bytes(done.quantized_model))


def ours(recipe: str) -> Model:
    model = language_model()
    scheme = recipe.removeprefix("dynamic_")
    both = {"embedding": scheme, "lm_head": scheme} if scheme in INT4 else {}  # which are int8 with us
    quantize(model, find_recipe(recipe, **both))
    return formats.loads(formats.dumps(model))


@pytest.mark.parametrize(
    "recipe", ["dynamic_int8", "weight_only_int8", "dynamic_int4_block32", "dynamic_int4_block128", "float16"]
)
def test_bytes_scales_and_results_are_the_same(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as nothing is cut off, which ai-edge-quantizer never does."""
    monkeypatch.setattr(Scheme, "limits", property(lambda scheme: (scheme.limit,)))
    expected, result = theirs(recipe, tmp_path), ours(recipe)
    assert set(constants(result)) == set(constants(expected)) == {"embed", "w", "head"}
    for name, value in constants(result).items():
        other = constants(expected)[name]
        assert value.dtype == other.dtype
        assert value.const_value is not None
        assert other.const_value is not None
        assert value.const_value.tobytes() == other.const_value.tobytes()
        if recipe == "float16":
            continue
        parameters, expected_parameters = (v.meta["fields"]["quantization"] for v in (value, other))
        if parameters.details is None:
            np.testing.assert_array_equal(parameters.scale, expected_parameters.scale)
            np.testing.assert_array_equal(parameters.zeroPoint, expected_parameters.zeroPoint)
        else:
            for field in ("blockSize", "zeroPoints"):
                assert getattr(parameters.details, field) == getattr(expected_parameters.details, field)
            scales, other_scales = (
                v.meta["quantization_constants"]["scales"].const_value for v in (value, other)
            )
            assert (scales.dtype, scales.shape) == (other_scales.dtype, other_scales.shape)
            assert scales.tobytes() == other_scales.tobytes()
    feeds = {"input_ids": np.arange(8, dtype=np.int32) * 7}
    results, wanted = (next(iter(run(model, feeds).values())) for model in (result, expected))
    assert_close(results, wanted)


@pytest.mark.parametrize("recipe", ["dynamic_int4_block32", "dynamic_int4_block128"])
def test_four_bits_are_nearer_to_the_weights(recipe: str, tmp_path: Path) -> None:
    weights = {name: value.const_value.numpy() for name, value in constants(language_model()).items()}

    def lost(model: Model) -> float:
        return sum(((meaning(v) - weights[name]) ** 2).sum() for name, v in constants(model).items())

    assert lost(ours(recipe)) < 0.85 * lost(theirs(recipe, tmp_path))


def test_blocks_of_nothing() -> None:
    """Their scale is 1e-9 / 7, which as float16 is none; ours is the least there is, and LiteRT takes it."""
    w = weights(F, D, seed=1)
    w[3, 32:] = 0
    graph = Graph("main")
    graph.output(graph.fc(graph.input("x", [2, D]), graph.constant("w", w), "y"))
    model = graph.model(format="tflite")
    quantize(model, find_recipe("dynamic_int4_block32"))
    value = constants(model)["w"]
    scales = value.meta["quantization_constants"]["scales"].const_value.numpy()
    assert (scales[3, 1:] == np.float16(2**-24)).all()
    assert not integers(value)[3, 32:].any()
    x = weights(2, D, seed=5)
    y = run(model, {"x": x})["y"]
    step = np.abs(x).max(1, keepdims=True) / 127
    assert (np.abs(y - x @ meaning(value).T) <= step / 2 * np.abs(meaning(value)).sum(1) + 1e-4).all()
