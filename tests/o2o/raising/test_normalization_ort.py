"""Norms of ONNX Runtime, compared with ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest

from tests.o2o.raising.onnx_runtime import model_of, operators, results


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("op_type", ["SkipSimplifiedLayerNormalization", "SkipLayerNormalization"])
def test_sum_in_front_of_a_norm(op_type: str) -> None:
    x, skip, gamma, beta, bias = (
        numbers(*shape, seed=seed) for seed, shape in enumerate([(1, 3, 8), (1, 3, 8), (8,), (8,), (8,)])
    )
    inputs = [x, skip, gamma, *([beta] if op_type == "SkipLayerNormalization" else []), bias]
    model = model_of(op_type, inputs, [True, False, False, True], epsilon=1e-3)
    expected, actual, graph = results(model, inputs)
    for want, got in zip(expected, actual, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert ("RMS_NORM" in operators(graph)) == (op_type == "SkipSimplifiedLayerNormalization")


def test_simplified_layer_normalization() -> None:
    inputs = [numbers(2, 3, 8), numbers(8)]
    model = model_of("SimplifiedLayerNormalization", inputs, 1, domain="", epsilon=1e-3, axis=-1)
    expected, actual, graph = results(model, inputs)
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-5, atol=1e-6)
    assert operators(graph) == ["RMS_NORM"]


def test_norm_of_embeddings() -> None:
    ids, segments = np.asarray([[3, 1, 4]], np.int32), np.asarray([[0, 1, 1]], np.int32)
    mask = np.asarray([[1, 1, 0]], np.int32)
    tables = [numbers(rows, 8, seed=rows) for rows in (6, 5, 2)]
    inputs = [ids, segments, *tables, numbers(8), numbers(8, seed=9), mask]
    model = model_of("EmbedLayerNormalization", inputs, [True, False, True], range(2, 7), mask_index_type=0)
    expected, actual, _ = results(model, inputs)
    for want, got in zip(expected, actual, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
