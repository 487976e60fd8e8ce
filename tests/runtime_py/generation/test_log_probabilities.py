"""Log-probabilities of tokens."""

from __future__ import annotations

import numpy as np
import pytest

from runtime_py.generation.log_probabilities import log_softmax, top_tokens


def test_they_are_those_of_the_softmax():
    logits = np.array([[1.0, 2.0, 4.0], [1000.0, 0.0, -1000.0]], np.float32)
    expected = np.log(np.exp(logits[0]) / np.exp(logits[0]).sum())
    found = log_softmax(logits)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, [expected, [0, -1000, -2000]], rtol=1e-6)
    np.testing.assert_allclose(log_softmax(logits[0]), expected, rtol=1e-6)
    assert log_softmax(np.array([0, -np.inf], np.float32)).tolist() == [0, -np.inf]


@pytest.mark.parametrize(
    ("count", "ids"), [(0, []), (1, [1]), (2, [1, 3]), (3, [1, 3, 0]), (9, [1, 3, 0, 2])]
)
def test_the_most_likely_first_and_the_lower_id_of_equals(count, ids):
    log_probabilities = np.array([-2.0, -1.0, -3.0, -1.0])
    top = top_tokens(log_probabilities, count)
    assert [one.id for one in top] == ids
    assert [one.log_probability for one in top] == [log_probabilities[token] for token in ids]
