"""Hidden scores: each number that is written is recognized as hidden, and its softmax weight is 0."""

from __future__ import annotations

import numpy as np

from o2o.operators.masks import HIDDEN_SCORE, HIDDEN_STEP, HIDDEN_THRESHOLD, LOWEST


def test_written_scores_are_recognized_as_hidden() -> None:
    assert LOWEST <= -HIDDEN_STEP <= HIDDEN_SCORE <= HIDDEN_THRESHOLD


def test_a_hidden_key_has_no_weight() -> None:
    assert np.exp(np.float32(HIDDEN_THRESHOLD)) == 0
    assert np.log(np.finfo(np.float32).smallest_subnormal) > HIDDEN_THRESHOLD


def test_the_step_is_exact_at_every_position() -> None:
    positions = np.array([1, 3, 2**20 - 1, 2**24 - 1])
    steps = np.float32(HIDDEN_STEP) * positions.astype(np.float32)
    assert np.isfinite(steps).all()
    assert (steps.astype(np.float64) == HIDDEN_STEP * positions).all()
