"""The parts of bench/recipes.py, on toys; conversions have tests of their own."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from bench import recipes
from bench.recipes import (
    Predictions,
    agreement,
    by_transformers,
    predict,
    row,
    sampled,
    texts_of,
    weight_error,
)
from bench.scale import Measured
from runtime_py.evaluation.log_likelihood import Score
from tests.checkpoints import GROUPED, write_checkpoint
from tests.runtime_py.toy import Toy


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), **GROUPED)


def test_agreement_ends_at_the_first_other_token() -> None:
    assert agreement([[1, 2, 3, 4]], [[1, 2, 9, 4]]) == 2
    assert agreement([[1, 2], [3, 4]], [[1, 2], [9, 4]]) == 1


def test_a_file_says_what_its_model_says(tmp_path: Path) -> None:
    toy = Toy(capacity=24)
    (tmp_path / "toy.tflite").write_bytes(toy.file)
    predictions = predict(tmp_path / "toy.tflite", tmp_path, [[1, 2, 3]], [[4, 5], [6]])
    assert predictions.tokens == [toy.greedy(prompt, 10) for prompt in ([4, 5], [6])]
    assert predictions.score is not None
    assert predictions.score.tokens == 2
    assert predict(tmp_path / "toy.tflite", tmp_path, [], []) == Predictions(None, [])
    assert weight_error(tmp_path / "toy.tflite", tmp_path / "toy.tflite") == 0


def test_transformers_by_the_likeliest_and_by_chance(checkpoint: Path) -> None:
    import torch

    model = recipes.transformers_model(checkpoint)
    prompt = [5, 6, 7]
    (chosen,) = by_transformers(checkpoint, [prompt])
    assert len(chosen) == 10
    for token in chosen:  # the end token is no end here
        assert token == int(model(torch.tensor([prompt])).logits[0, -1].argmax())
        prompt = [*prompt, token]
    texts = np.array(sampled(checkpoint, 4, 12))
    assert texts.shape == (4, 12)
    assert (texts[:, 0] == model.config.bos_token_id).all()
    assert len(np.unique(texts[:, 1:])) > 5
    np.testing.assert_array_equal(texts, sampled(checkpoint, 4, 12))


def test_a_random_checkpoint_has_nothing_to_predict(checkpoint: Path) -> None:
    assert texts_of(Namespace(text=None, sampled=None), checkpoint, 64) == []
    prompts = np.array(recipes.random_prompts(checkpoint))
    assert prompts.shape == (10, 8)
    assert prompts.max() < GROUPED["vocab_size"]


def test_rows() -> None:
    base, predictions = Predictions(Score(1.0, 9), []), Predictions(Score(1.01, 9), [])
    took = Measured(12.3, 456.7, 8.9)
    assert row("float32", 4_400_000_000, 4_400_000_000, None, base, base, 10.0, took, []) == (
        "| float32 | 4.40 GB |  |  | 2.7183 |  | 10.0/10 | 12 s (9) | 457 MB |  |"
    )
    assert row("q8", 1_100_000, 4_400_000, 0.5, predictions, base, 9.7, took, [1.0, 2.0, 3.0]) == (
        "| q8 | 1.10 MB | 25.0% | 0.5 | 2.7456 | +1.01% | 9.7/10 | 12 s (9) | 457 MB | 2.00x (1.00 to 3.00) |"
    )
    nothing = Predictions(None, [])
    assert "| - |  |" in row("int8", 1, 4, 0.0, nothing, nothing, 9.7, took, [1.0, 1.0])
    assert row("", 1, 4, 0.0, nothing, nothing, 1, took, []).count("|") == recipes.HEAD.count("|")
