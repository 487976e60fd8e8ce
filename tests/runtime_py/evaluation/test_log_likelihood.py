"""Negative log-likelihoods, against the toy's own numbers."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import numpy as np
import pytest

from o2o.contract import contract_of
from o2o.errors import ModelError, O2oError
from o2o.formats import loads
from runtime_py.engines.litert.engine import LiteRtEngine, LiteRtSession
from runtime_py.evaluation.log_likelihood import (
    Score,
    documents,
    negative_log_likelihoods,
    scores,
    take_tokens,
)
from runtime_py.model.contract import Contract
from tests.runtime_py.toy import VOCAB, Toy
from tests.tolerances import assert_close


@contextlib.contextmanager
def session_of(file: bytes) -> Iterator[LiteRtSession]:
    engine = LiteRtEngine(file, Contract.parse(contract_of(loads(file))))
    with contextlib.closing(engine), contextlib.closing(engine.open_session()) as session:
        yield session


def expected(toy: Toy, ids: list[int]) -> list[float]:
    """-log p of ids[1:], by the toy's formula."""
    nlls = []
    for count in range(1, len(ids)):
        p = np.exp(toy.logits(ids[:count]).astype(np.float64))
        nlls.append(-math.log(p[ids[count]] / p.sum()))
    return nlls


@pytest.mark.parametrize("ai_edge", [False, True])
def test_each_token_after_the_first_by_all_before_it(ai_edge):
    toy = Toy(cached_lengths=[3], prefill_length=0 if ai_edge else 5, ai_edge=ai_edge)
    ids = np.random.default_rng(1).integers(0, VOCAB, 9).tolist()  # one more than the caches hold
    with session_of(toy.file) as session:
        assert_close(negative_log_likelihoods(session, ids), expected(toy, ids))
        # a document knows nothing of the one before, and one that is too long is cut
        longer = [*ids[::-1], 3, 3]
        assert_close(negative_log_likelihoods(session, longer), expected(toy, longer[:9]))
        assert len(negative_log_likelihoods(session, [4])) == 0


def test_logits_that_are_no_numbers_are_refused():
    toy = Toy(damage=np.nan)
    with session_of(toy.file) as session:
        assert np.isfinite(negative_log_likelihoods(session, [1, 2, 3])).all()
        # A prefill multiplies masked rows by 0, and 0 times NaN is NaN.
        with pytest.raises(ModelError, match=r"the logits after token [12] are NaN"):
            negative_log_likelihoods(session, [1, toy.vocab - 1, 3])


@pytest.mark.parametrize("ids", [[1, -1], [-1, 1], [1, 2.5], [1, VOCAB]])
def test_ids_that_are_no_token_are_refused_also_at_the_end(ids):
    """The last id is not read by the model: it only selects a logit."""
    with session_of(Toy().file) as session, pytest.raises(O2oError, match="the text has"):
        negative_log_likelihoods(session, ids)


def test_huge_logits_are_numbers():
    class Sure:
        capacity, vocab_size = 4, 3

        def logits(self, tokens):
            yield np.array([[1e30, -1e30, 0]], np.float32)

    assert negative_log_likelihoods(Sure(), [0, 0])[0] == 0
    assert negative_log_likelihoods(Sure(), [0, 1])[0] == pytest.approx(2e30)


def test_a_token_of_probability_zero_is_refused():
    class Masking:
        capacity, vocab_size = 4, 2

        def logits(self, tokens):
            yield np.array([[0, -np.inf]], np.float32)

    with pytest.raises(ModelError, match="token 2 of a document has the probability 0"):
        negative_log_likelihoods(Masking(), [0, 1])


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("one", ["one"]),
        ("one\n\ntwo\nlines\n\n\n\nthree\n", ["one", "two\nlines", "three"]),
        ("\n\n one \n \t\n\ttwo", [" one ", "\ttwo"]),
        (" \n\n", []),
    ],
)
def test_blank_lines_part_documents(text, split):
    assert documents(text) == split


def test_the_first_tokens_of_documents():
    ids = [[1, 2, 3], [4], [], [5, 6, 7, 8]]
    assert list(take_tokens(ids, None)) == [[1, 2, 3], [5, 6, 7, 8]]
    assert list(take_tokens(ids, 4)) == [[1, 2, 3], [5, 6, 7]]
    assert list(take_tokens(ids, 2)) == [[1, 2, 3]]
    assert list(take_tokens(ids, 1)) == [[1, 2]]


def test_scores_are_of_what_all_models_read():
    one = [np.array([1.0, 3.0, 100.0]), np.array([2.0])]
    other = [np.array([2.0, 2.0]), np.array([5.0])]
    assert scores([one, other]) == [Score(2.0, 3), Score(3.0, 3)]
    assert scores([one]) == [Score(26.5, 4)]


def test_perplexity_and_its_change():
    assert Score(math.log(8), 5).perplexity == pytest.approx(8)
    assert Score(math.log(8), 5).change(Score(math.log(4), 5)) == pytest.approx(1.0)
    assert math.isfinite(Score(1e4, 1).perplexity)
