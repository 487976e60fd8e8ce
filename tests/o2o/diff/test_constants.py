"""Constants of two models: equal bytes, and the distance of the numbers that they stand for."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest

from o2o import formats
from o2o.diff import constants
from o2o.diff.constants import distance, same_bytes
from o2o.model import Model
from o2o.quantization.compare import dequantized
from o2o.quantization.quantize import quantize
from o2o.quantization.recipes import find_recipe
from tests.o2o.graphs import Graph, blockwise, quantized, strings, weights


def value(numbers: np.ndarray) -> ir.Value:
    return Graph("main").constant("c", numbers)


def test_the_distance_of_floats() -> None:
    first, second = np.float32([[3, 4], [0, 0]]), np.float32([[3, 4], [0, 2]])
    apart = distance(value(first), value(second))
    assert apart is not None
    assert (apart.count, apart.different, apart.largest) == (4, 1, 2)
    assert apart.rms == pytest.approx(1)
    assert apart.relative == pytest.approx(2 / 5)


def test_chunks_are_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = weights(50, 7), weights(50, 7, seed=1)
    whole = distance(value(first), value(second))
    monkeypatch.setattr(constants, "CHUNK", 100)
    parts = distance(value(first), value(second))
    assert whole is not None
    assert parts is not None
    assert vars(parts) == pytest.approx(vars(whole))
    assert whole.largest == pytest.approx(np.abs(first.astype(np.float64) - second).max())
    assert not same_bytes(value(first).const_value, value(second).const_value)  # type: ignore[arg-type]


def test_numbers_that_are_not_finite() -> None:
    apart = distance(
        value(np.float32([1, np.nan, np.inf, 5])), value(np.float32([1, np.nan, -np.inf, np.nan]))
    )
    assert apart is not None
    assert (apart.not_finite, apart.count, apart.different) == (2, 1, 0)
    nothing = distance(value(np.float32([0])), value(np.float32([1])))
    assert nothing is not None
    assert nothing.relative == math.inf
    assert nothing.as_json()["relative"] is None


@pytest.mark.parametrize("recipe", ["dynamic_int8", "dynamic_int4_block32", "float16"])
def test_quantized_weights_count_as_what_they_stand_for(recipe: str) -> None:
    models = [language() for _ in range(2)]
    quantize(models[1], find_recipe(recipe))
    first, second = (model.graphs[0].initializers["weight"] for model in models)
    second = formats.loads(formats.dumps(models[1])).graphs[0].initializers["weight"]
    apart = distance(first, second)
    assert apart is not None
    gap = np.abs(dequantized(first).astype(np.float64) - dequantized(second))
    assert apart.largest == pytest.approx(gap.max(), rel=1e-5)
    assert 0 < apart.relative < 0.2


def language() -> Model:
    graph = Graph("main")
    x = graph.input("x", [1, 64])
    graph.output(graph.fc(x, graph.constant("weight", weights(96, 64)), "y"))
    return graph.model()


@pytest.mark.parametrize("make", [quantized, blockwise])
def test_nothing_is_apart_from_itself(make) -> None:  # type: ignore[no-untyped-def]
    for model in (make(), formats.loads(formats.dumps(make()))):
        for constant in model.graphs[0].initializers.values():
            apart = distance(constant, constant)
            assert apart is None or apart.different == 0


def test_text_has_no_numbers() -> None:
    words = strings().graphs[0].initializers["words"]
    assert distance(words, words) is None
    assert distance(value(np.float32([1])), value(np.float32([1, 2]))) is None
