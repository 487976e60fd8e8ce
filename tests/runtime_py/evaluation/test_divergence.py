"""KL divergence and agreement of two models, against their definitions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from o2o.errors import ModelError, O2oError
from runtime_py.engines.litert.engine import LiteRtEngine
from runtime_py.evaluation.divergence import compare_predictions
from runtime_py.model.contract import Contract
from tests.runtime_py.toy import Toy


class Fixed:
    """A session whose logits after a token depend on the token alone."""

    def __init__(self, table: Sequence[Sequence[float]], capacity: int = 8, parts: int = 1) -> None:
        self.table = np.array(table, np.float32)
        self.capacity, self.vocab_size, self.parts = capacity, self.table.shape[1], parts

    def logits(self, tokens: Sequence[int]) -> Iterator[np.ndarray]:
        rows = self.table[list(tokens)]
        yield from (rows[start : start + self.parts] for start in range(0, len(rows), self.parts))


def log(*probabilities: float) -> list[float]:
    with np.errstate(divide="ignore"):
        return np.log(probabilities).tolist()


def test_the_definitions():
    before = Fixed([log(0.5, 0.25, 0.25), log(0.1, 0.1, 0.8), log(1, 1, 1)])
    after = Fixed([log(0.25, 0.5, 0.25), log(0.1, 0.1, 0.8), log(1, 1, 1)], parts=2)
    result = compare_predictions(before, after, [[0, 1, 2], [0], [0, 2]])
    kl = 0.5 * np.log(2) - 0.25 * np.log(2)
    assert result.kl.tolist() == pytest.approx([kl, 0, kl], abs=1e-7)
    assert result.same_top.tolist() == [False, True, False]
    assert result.mean == pytest.approx(2 / 3 * kl)
    assert result.percentile_99 == pytest.approx(kl)
    assert result.top1_agreement == pytest.approx(1 / 3)
    before_nlls, after_nlls = result.nlls
    assert [nlls.tolist() for nlls in before_nlls] == [
        pytest.approx([-np.log(0.25), -np.log(0.8)]),
        [],
        pytest.approx([-np.log(0.25)]),
    ]
    assert after_nlls[0].tolist() == pytest.approx([-np.log(0.5), -np.log(0.8)])


def test_tokens_of_probability_zero_in_the_reference_add_nothing():
    result = compare_predictions(Fixed([log(0.5, 0.5, 0)] * 3), Fixed([log(0.25, 0.25, 0.5)] * 3), [[0, 1]])
    assert result.mean == pytest.approx(np.log(2))


def test_tokens_of_probability_zero_in_the_other_are_refused():
    with pytest.raises(ModelError, match="has the probability 0"):
        compare_predictions(Fixed([log(0.5, 0.5)] * 2), Fixed([log(1, 0)] * 2), [[0, 0]])


@pytest.mark.parametrize("last", [-1, 2])
def test_a_last_id_that_is_no_token_is_refused(last):
    with pytest.raises(O2oError, match="the text has"):
        compare_predictions(Fixed([log(1, 1)] * 2), Fixed([log(1, 1)] * 2), [[0, last]])


def test_other_vocabularies_are_refused():
    with pytest.raises(ModelError, match="one model has 2 logits, the other 3"):
        compare_predictions(Fixed([log(1, 1)]), Fixed([log(1, 1, 1)]), [[0, 0]])


def test_the_smaller_capacity_cuts_documents():
    session = Fixed([log(0.5, 0.5)] * 2, capacity=3)
    assert len(compare_predictions(session, Fixed([log(0.5, 0.5)] * 2), [[0] * 9]).kl) == 3


def test_a_model_does_not_diverge_from_itself():
    toy = Toy(cached_lengths=[3])
    engine = LiteRtEngine(toy.file, Contract.parse(toy.contract))
    with contextlib.closing(engine):
        sessions = engine.open_session(), engine.open_session()
        result = compare_predictions(*sessions, [[1, 2, 3, 4, 5, 6, 7, 8, 9], [3, 3]])
        assert result.mean == 0
        assert result.top1_agreement == 1
