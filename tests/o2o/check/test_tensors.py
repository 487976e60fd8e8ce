"""Tensors of two models made comparable."""

from __future__ import annotations

import numpy as np
import pytest

from o2o.check.tensors import relative_difference, shared_rows


@pytest.mark.parametrize(
    ("expected", "actual", "difference"),
    [
        (np.float32([1, -4]), np.float32([1, -3]), 0.25),
        (np.float32([np.inf, 2]), np.float32([np.inf, 2]), 0),
        (np.float32([np.nan, 2]), np.float32([np.nan, 1]), 0.5),
        (np.float32([np.inf, 2]), np.float32([-np.inf, 2]), np.inf),
        (np.float32([1, 2]), np.float32([np.nan, 2]), np.inf),
        (np.float32([1, 2]), np.float32([[1, 2]]), np.inf),
        (np.int32([1, 2]), np.int32([1, 2]), 0),
        (np.int32([1, 2]), np.int32([1, 3]), np.inf),
        (np.float32([1e-4]), np.float32([2e-4]), 0.1),  # relative to 1e-3 at least
    ],
)
def test_differences_are_relative_to_the_largest_number(expected, actual, difference) -> None:
    assert relative_difference(expected, actual) == pytest.approx(difference)


@pytest.mark.parametrize(("step", "difference"), [(1, 0), (2, np.inf)])
def test_rounded_integers_may_differ_by_one(step: int, difference: float) -> None:
    values = np.int8([-128, 0, 5])
    assert relative_difference(values, values + np.int8(step), rounded=True) == difference


def test_caches_of_other_capacities_are_compared_in_the_rows_of_both() -> None:
    old, new = np.arange(24).reshape(1, 2, 4, 3), np.zeros((1, 2, 3, 3))
    cut, other = shared_rows(old, new)
    assert cut.tolist() == old[:, :, :3].tolist()
    assert other is not None
    assert other.shape == (1, 2, 3, 3)
    assert shared_rows(old, np.zeros((1, 3, 4, 3)))[1] is None
