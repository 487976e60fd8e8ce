"""`tests.tolerances`: scale does not matter, and an error is seen."""

from __future__ import annotations

import numpy as np
import pytest

from tests.tolerances import assert_close

RNG = np.random.default_rng(0)
NUMBERS = RNG.normal(size=(4, 50)).astype(np.float32)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_rounding_passes_and_an_error_does_not(scale: float) -> None:
    numbers = NUMBERS * np.float32(scale)
    size = np.abs(numbers).max()
    assert_close(numbers + size * 1e-5, numbers)
    wrong = numbers.copy()
    wrong[2, 3] += size * 1e-4
    with pytest.raises(AssertionError, match="1 / 200"):
        assert_close(wrong, numbers)


def test_shapes_and_infinities_count() -> None:
    with pytest.raises(AssertionError):
        assert_close(NUMBERS[:2], NUMBERS)
    numbers = NUMBERS.copy()
    numbers[0, 0] = -np.inf
    assert_close(numbers, numbers)
    with pytest.raises(AssertionError):
        assert_close(NUMBERS, numbers)


def test_a_product_of_matrices_in_another_order_passes() -> None:
    """As two processors add the same products in two orders; half precision does not pass."""
    a, b = RNG.normal(size=(8, 3000)).astype(np.float32), RNG.normal(size=(3000, 8)).astype(np.float32)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    order = RNG.permutation(3000)
    assert_close(a[:, order] @ b[order], exact)
    with pytest.raises(AssertionError):
        assert_close(a.astype(np.float16).astype(np.float32) @ b, exact)
