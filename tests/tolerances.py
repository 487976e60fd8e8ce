"""Comparison of float32 results: the tolerance is in units of the last place, at the size of the numbers.

Processors round in different orders. An absolute tolerance is therefore too small for large logits and
blind for small ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np

UNITS = 256
"""Last places that a small model may lose: 27 were seen on one processor, 75 on another."""


def assert_close(actual: Any, desired: Any, units: float = UNITS, err_msg: str = "") -> None:
    """Assert that no number differs by more than `units` last places of the largest number.

    Args:
        actual: An array or tensor.
        desired: The expected numbers, in the same shape.
        units: The tolerance, in units of 2**-23 times the largest magnitude in `desired`.
        err_msg: What the numbers are, for the message of a failure.

    Raises:
        AssertionError: A number is further off.
    """
    expected = np.asarray(desired.detach() if hasattr(desired, "detach") else desired, np.float64)
    given = np.asarray(actual.detach() if hasattr(actual, "detach") else actual, np.float64)
    finite = np.abs(expected[np.isfinite(expected)])
    tolerance = units * np.finfo(np.float32).eps * finite.max(initial=0.0)
    np.testing.assert_allclose(given, expected, rtol=0, atol=tolerance, err_msg=err_msg)
