"""Ratios of measurements. Both sides of a ratio come from the same round, as machine load changes."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Round = Mapping[str, Mapping[str, float]]
"""Measurements by variant and measure."""

SMALLER_IS_BETTER = ("load", "memory")


@dataclass(frozen=True)
class Spread:
    """The median, lowest and highest value of several rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarize values.

        Args:
            values: One value of each round.

        Returns:
            Their spread.
        """
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}..{self.high:.2f})"


def figures(rounds: Iterable[Round], variant: str, measure: str) -> Spread | None:
    """Summarize the measurements of a variant.

    Args:
        rounds: The rounds.
        variant: Its name.
        measure: The measure.

    Returns:
        The spread; None if no round has the measure.
    """
    values = [each[variant][measure] for each in rounds if measure in each.get(variant, {})]
    return Spread.of(values) if values else None


def ratios(rounds: Iterable[Round], ours: str, theirs: str, measure: str) -> Spread | None:
    """Summarize the ratios of two variants. Above 1, `ours` is better: faster, or smaller.

    Args:
        rounds: The rounds.
        ours: The name of a variant of this project.
        theirs: The name of a peer's variant.
        measure: The measure.

    Returns:
        The spread; None if no round has both.
    """
    values = []
    for each in rounds:
        a, b = (each.get(variant, {}).get(measure) for variant in (ours, theirs))
        if a and b:
            values.append(b / a if measure in SMALLER_IS_BETTER else a / b)
    return Spread.of(values) if values else None


def best(rounds: Sequence[Round], variants: Iterable[str], measure: str) -> str | None:
    """Find the variant with the best median.

    Args:
        rounds: The rounds.
        variants: The names of the variants.
        measure: The measure.

    Returns:
        The name; None if no round has the measure.
    """
    medians = {
        variant: spread.median for variant in variants if (spread := figures(rounds, variant, measure))
    }
    choose = min if measure in SMALLER_IS_BETTER else max
    return choose(medians, key=lambda variant: medians[variant]) if medians else None
