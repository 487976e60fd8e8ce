"""Statistics of the quantization error: the difference between weights and their quantized values."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass
class QuantizationError:
    """Sums over all numbers w of a matrix and their quantized values w', in float64.

    Attributes:
        weight_squares: The sum of w^2.
        error_squares: The sum of (w' - w)^2.
        largest_weight: The largest |w|.
        largest_error: The largest |w' - w|.
    """

    weight_squares: float = 0.0
    error_squares: float = 0.0
    largest_weight: float = 0.0
    largest_error: float = 0.0

    @property
    def rms(self) -> float:
        """The root mean square of the error, relative to the root mean square of the numbers."""
        return math.sqrt(self.error_squares / self.weight_squares) if self.weight_squares else 0.0

    @property
    def max(self) -> float:
        """The largest error, relative to the largest number."""
        return self.largest_error / self.largest_weight if self.largest_weight else 0.0

    def as_json(self) -> dict[str, float]:
        """Return the relative errors.

        Returns:
            An object for JSON with `rms` and `max`.
        """
        return {"rms": self.rms, "max": self.max}

    def add_numbers(self, numbers: np.ndarray, errors: np.ndarray) -> None:
        """Add numbers to the statistics.

        Args:
            numbers: Numbers w, float32 [count].
            errors: Their errors w' - w, float32 [count].
        """
        self.weight_squares += _sum_of_squares(numbers)
        self.error_squares += _sum_of_squares(errors)
        self.largest_weight = max(self.largest_weight, float(numbers.max()), -float(numbers.min()))
        self.largest_error = max(self.largest_error, float(errors.max()), -float(errors.min()))

    def add(self, other: QuantizationError) -> None:
        """Add the statistics of another matrix.

        Args:
            other: Its statistics.
        """
        self.weight_squares += other.weight_squares
        self.error_squares += other.error_squares
        self.largest_weight = max(self.largest_weight, other.largest_weight)
        self.largest_error = max(self.largest_error, other.largest_error)


def _sum_of_squares(numbers: np.ndarray) -> float:
    """In float64: the squares of small float32 numbers are zero in float32.

    Not by `np.dot`: the threads of BLAS wait for each other on a busy machine, for most of a quantization.
    """
    exact = numbers.astype(np.float64)
    return float(np.einsum("i,i->", exact, exact))
