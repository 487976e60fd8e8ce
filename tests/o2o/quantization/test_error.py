"""Statistics of the quantization error, against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest

from o2o.quantization.error import QuantizationError
from tests.o2o.graphs import weights


def of(numbers: np.ndarray, errors: np.ndarray) -> QuantizationError:
    error = QuantizationError()
    error.add_numbers(numbers.reshape(-1), errors.reshape(-1))
    return error


def test_relative_errors() -> None:
    w, lost = weights(8, 16), weights(8, 16, seed=1) / 100
    error = of(w, lost)
    rms = np.sqrt((lost.astype(np.float64) ** 2).sum() / (w.astype(np.float64) ** 2).sum())
    assert error.rms == pytest.approx(rms)
    assert error.max == pytest.approx(np.abs(lost).max() / np.abs(w).max())
    assert error.as_json() == {"rms": error.rms, "max": error.max}


def test_sums_over_chunks_and_matrices() -> None:
    w, lost = weights(8, 16), weights(8, 16, seed=1) / 100
    parts = of(w[:3], lost[:3])
    parts.add(of(w[3:], lost[3:]))
    whole = of(w, lost)
    assert (parts.rms, parts.max) == (pytest.approx(whole.rms), whole.max)


def test_squares_of_small_numbers_are_not_zero() -> None:
    tiny = np.full(4, 1e-30, np.float32)
    assert of(tiny, tiny / 2).rms == pytest.approx(0.5)


def test_zeros_have_no_error() -> None:
    zeros = np.zeros(4, np.float32)
    assert (of(zeros, zeros).rms, of(zeros, zeros).max) == (0, 0)
