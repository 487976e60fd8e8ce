"""Scores of texts, against the toy's own numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from o2o.errors import ModelError, UsageError
from runtime_py.generation import scoring
from runtime_py.package import Package
from tests.runtime_py.tokenizers_on_disk import LLAMA, write_config, write_sentencepiece
from tests.runtime_py.toy import Toy

TOY = Toy(vocab=380, capacity=6, cached_lengths=[4])


@pytest.fixture
def package(tmp_path):
    folder = write_config(write_sentencepiece(tmp_path / "package"), **LLAMA)
    (folder / "model.tflite").write_bytes(TOY.file)
    with Package.load(folder) as package:
        yield package


def log_p(ids: list[int]) -> np.ndarray:
    logits = TOY.logits(ids).astype(np.float64)
    return logits - logits.max() - math.log(np.exp(logits - logits.max()).sum())


def test_each_token_by_all_before_it(package):
    ids = [1, 40, 7, 300, 9, 22, 5]  # one more than the caches hold
    tokens = package.score(ids, top=2)
    assert [token.id for token in tokens] == ids
    assert "".join(token.text for token in tokens) == package.tokenizer.decode(ids)
    assert (tokens[0].log_probability, tokens[0].top) == (None, ())
    for count, token in enumerate(tokens[1:], 1):
        expected = log_p(ids[:count])
        assert token.log_probability == pytest.approx(expected[ids[count]], abs=1e-5)
        assert [one.id for one in token.top] == np.argsort(-expected)[:2].tolist()
        assert token.top[0].log_probability == pytest.approx(expected.max(), abs=1e-5)


def test_a_text_is_encoded_as_a_prompt_is(package):
    ids = package.tokenizer.encode("the dog")
    assert package.score("the dog") == package.score(ids)
    assert all(token.top == () for token in package.score("the dog"))


def test_generation_and_scores_agree_and_do_not_disturb_each_other(package):
    stream = package.stream([1, 40], max_new_tokens=4, log_probabilities=0)
    generated = [next(stream)]
    ids = [1, 40, generated[0].id]
    assert package.score(ids)[-1].log_probability == pytest.approx(generated[0].log_probability, abs=1e-5)
    generated += stream
    ids = [1, 40, *(token.id for token in generated)]
    scores = [token.log_probability for token in package.score(ids)[2:]]
    assert scores == pytest.approx([token.log_probability for token in generated], abs=1e-5)
    assert generated == list(package.stream([1, 40], max_new_tokens=4, log_probabilities=0))


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([], UsageError, "the text is empty"),
        ([1] * 8, UsageError, "the text has 8 tokens, and 7 can be scored"),
        ([1, -1], UsageError, "the text has -1 at index 1"),
        ([1, 1.5], UsageError, "1.5 at index 1"),
        ([1, 380], ModelError, "the text has the token id 380"),
        ([380, 1], ModelError, "the text has the token id 380"),
        ([380], ModelError, "the text has the token id 380"),
    ],
)
def test_texts_that_cannot_be_scored(package, ids, error, message):
    with pytest.raises(error, match=message):
        package.score(ids)


def test_one_token_has_no_score(package):
    (token,) = package.score([4])
    assert (token.id, token.log_probability) == (4, None)


def test_a_negative_number_of_top_tokens_is_refused(package):
    with pytest.raises(UsageError, match="log_probabilities"):
        package.score([1, 2], top=-1)


def test_blocks_have_all_rows_in_order(monkeypatch):
    monkeypatch.setattr(scoring, "BLOCK", 8)
    parts = [np.arange(20.0).reshape(5, 4), np.arange(20.0, 24).reshape(1, 4)]
    blocks = [*scoring.blocks(iter(parts))]
    assert [len(block) for block in blocks] == [2, 2, 1, 1]
    assert np.concatenate(blocks).tolist() == np.concatenate(parts).tolist()
    assert [len(block) for block in scoring.blocks([np.zeros((2, 100))])] == [1, 1]
