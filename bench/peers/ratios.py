"""From what rounds measured to ratios. Both sides of a ratio are of the same round: machines change."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Round = Mapping[str, Mapping[str, float]]
"""By variant, by measure."""

SMALLER_IS_BETTER = ("load", "memory")


@dataclass(frozen=True)
class Spread:
    """The median of some rounds, the least and the most."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}..{self.high:.2f})"


def figures(rounds: Iterable[Round], variant: str, measure: str) -> Spread | None:
    """What `variant` reached; None where no round has it."""
    values = [each[variant][measure] for each in rounds if measure in each.get(variant, {})]
    return Spread.of(values) if values else None


def ratios(rounds: Iterable[Round], ours: str, theirs: str, measure: str) -> Spread | None:
    """How many times as good `ours` is: as fast, or as small. None where no round has both."""
    values = []
    for each in rounds:
        a, b = (each.get(variant, {}).get(measure) for variant in (ours, theirs))
        if a and b:
            values.append(b / a if measure in SMALLER_IS_BETTER else a / b)
    return Spread.of(values) if values else None


def best(rounds: Sequence[Round], variants: Iterable[str], measure: str) -> str | None:
    """The one of the best median; None where no round has any."""
    found = {variant: spread.median for variant in variants if (spread := figures(rounds, variant, measure))}
    choose = min if measure in SMALLER_IS_BETTER else max
    return choose(found, key=lambda variant: found[variant]) if found else None
