"""RotaryEmbedding of com.microsoft, compared with ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest

from o2o.raising.operation import NotRaised
from tests.o2o.raising.onnx_runtime import model_of, operators, raised, results


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("positions", [[[3, 5, 6]], [2]], ids=["of tokens", "of the first"])
@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize(
    ("shape", "size"), [((1, 4, 3, 16), 16), ((1, 3, 64), 16), ((1, 3, 64), 8)], ids=["4d", "3d", "partial"]
)
def test_rotary_embedding(shape: tuple[int, ...], size: int, interleaved: int, positions: list) -> None:
    tables = [numbers(9, size // 2, seed=seed) for seed in (1, 2)]
    inputs = [numbers(*shape), np.asarray(positions, np.int64), *tables]
    heads = {"num_heads": 4, "rotary_embedding_dim": size} if size == 8 else {}
    model = model_of("RotaryEmbedding", inputs, 1, interleaved=interleaved, **heads)
    expected, actual, graph = results(model, inputs)
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-5, atol=1e-6)
    assert operators(graph).count("ROPE") == 1


def test_packed_texts_are_refused() -> None:
    inputs = [numbers(1, 3, 64), np.asarray([[0, 1, 2]], np.int64), numbers(9, 8), numbers(9, 8)]
    model = model_of("RotaryEmbedding", inputs, 1, is_packed_batching=1)
    with pytest.raises(NotRaised, match="packed"):
        raised(model)
