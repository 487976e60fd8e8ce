"""Finite weights: NaN and infinity in a checkpoint are refused, and so are numbers beyond a smaller dtype."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from o2o.errors import ModelError

ALLOW = "O2O_ALLOW_NON_FINITE"
"""The environment variable that turns these checks off, if it is set to 1."""


_PART = 1 << 16  # numbers checked at a time: the intermediate result stays in the processor's cache


def all_finite(numbers: np.ndarray) -> bool:
    """Check for NaN and infinity, in about the time that reading the memory takes.

    Args:
        numbers: Floating point of any dtype, also `ml_dtypes.bfloat16`.

    Returns:
        Whether all are finite.
    """
    unsigned = np.dtype(f"u{numbers.itemsize}")
    infinity = np.array(np.inf, numbers.dtype).view(unsigned)  # NaN has more bits, finite numbers have less
    magnitude = unsigned.type((1 << (8 * numbers.itemsize - 1)) - 1)  # all bits but the sign
    bits = numbers.reshape(-1).view(unsigned)
    parts = (bits[start : start + _PART] for start in range(0, bits.size, _PART))
    return all(np.bitwise_and(part, magnitude).max() < infinity for part in parts)


def allowed() -> bool:
    """Check for the user's decision to accept such weights.

    Returns:
        Whether the environment variable is set.
    """
    return os.environ.get(ALLOW) == "1"


def non_finite_error(
    path: Path, name: str, shape: tuple[int, ...], blocks: Iterable[np.ndarray]
) -> ModelError:
    """Describe the numbers of a tensor that are not finite.

    Args:
        path: Its file.
        name: Its name.
        shape: Its shape.
        blocks: Its numbers in C order.

    Returns:
        The error, with their number and the place of the first.
    """
    count, start, first, value = 0, 0, 0, 0.0
    for block in blocks:
        wrong = np.flatnonzero(~np.isfinite(block.astype(np.float64)))
        if wrong.size and not count:
            first, value = start + int(wrong[0]), float(block[wrong[0]])
        count += wrong.size
        start += len(block)
    index = [int(axis) for axis in np.unravel_index(first, shape)] if shape else []
    numbers = "number that is" if count == 1 else "numbers that are"
    return ModelError(
        f"{path}: {name} has {count:,} {numbers} not finite, the first is {value} at {index}: the checkpoint "
        f"is damaged ({ALLOW}=1 accepts it)"
    )


def cast(numbers: np.ndarray, dtype: np.dtype, path: Path, name: str) -> np.ndarray:
    """Convert finite weights to another dtype.

    Args:
        numbers: Floating point, [N].
        dtype: The new dtype.
        path: Their file, for the message.
        name: The name of their tensor, for the message.

    Returns:
        The converted numbers.

    Raises:
        ModelError: A number is beyond the range of `dtype`.
    """
    if numbers.dtype == dtype:
        return numbers
    with np.errstate(over="ignore", invalid="ignore"):
        converted = numbers.astype(dtype)
    if dtype.itemsize > 4 or all_finite(converted) or not all_finite(numbers) or allowed():
        return converted
    largest = float(numbers[np.argmax(np.abs(numbers))])
    raise ModelError(
        f"{path}: {name} has {largest:g}, which does not fit {dtype.name}: store it as float32 or bfloat16 "
        f"({ALLOW}=1 stores infinity)"
    )
