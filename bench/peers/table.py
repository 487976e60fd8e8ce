"""The printed tables of a shape: measurements, ratios of this project to each peer, and targets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.peers import targets
from bench.peers.ratios import SMALLER_IS_BETTER, Round, Spread, best, figures, ratios
from bench.peers.variants import AUTO, Variant

UNITS: dict[str, tuple[str, float]] = {"load": ("load s", 1), "memory": ("peak MB", 1e-6)}


def table(
    shape: str,
    rounds: Sequence[Round],
    variants: Sequence[Variant],
    sizes: Mapping[str, int],
    correlations: Mapping[str, float],
) -> Iterator[str]:
    """Format the tables of a shape.

    Args:
        shape: The shape.
        rounds: The rounds.
        variants: The variants with measurements.
        sizes: Bytes of each variant's model.
        correlations: See `Results`.

    Yields:
        Lines of text.
    """
    measures = _measures(rounds)
    heads = [UNITS.get(measure, (measure, 1))[0] for measure in measures]
    rows = [[f"{shape}, {len(rounds)} rounds", *heads, "file MB", "agrees"]]
    for one in variants:
        cells = [_figure(measure, figures(rounds, one.name, measure)) for measure in measures]
        agrees = f"{correlations[one.name]:.3f}" if one.name in correlations else "-"
        rows.append([one.name, *cells, f"{sizes[one.name] / 1e6:,.1f}", agrees])
    yield from _aligned(rows)

    ours = [one for one in variants if one.ours]
    theirs = [one for one in variants if not one.ours]
    rows = []
    for one in ours:
        for other in theirs:
            if _comparable(one, other):
                cells = [_ratio(rounds, one.name, other.name, measure) for measure in measures]
                rows.append([f"{one.name} / {other.name}", *cells])
    names = [one.name for one in ours]
    for other in theirs if ours else ():
        cells = [_ratio(rounds, best(rounds, names, measure), other.name, measure) for measure in measures]
        rows.append([f"this project's best / {other.name}", *cells])
    for one in ours:
        if one.engine == AUTO:
            forms = [other.name for other in ours if other.precision == one.precision and other != one]
            cells = [_ratio(rounds, one.name, best(rounds, forms, measure), measure) for measure in measures]
            rows.append([f"{one.name} / its best engine", *cells])
    if rows:
        yield from _aligned([["how many times as good", *heads], *rows])
    if rows := targets.target_rows(shape, rounds, {one.name: one.precision for one in ours}, sizes):
        yield from _aligned([["targets", "reached", "wanted", ""], *rows])


def pairs(rounds: Sequence[Round], variants: Sequence[Variant]) -> list[dict[str, Any]]:
    """List every ratio, for JSON.

    Args:
        rounds: The rounds.
        variants: The variants with measurements.

    Returns:
        An object for each pair of variants and measure.
    """
    return [
        {"ours": one.name, "theirs": other.name, "measure": measure, **vars(spread)}
        for one in variants
        if one.ours
        for other in variants
        if not other.ours
        for measure in _measures(rounds)
        if (spread := ratios(rounds, one.name, other.name, measure))
    ]


def _measures(rounds: Sequence[Round]) -> list[str]:
    """All measures in order of first occurrence, those where smaller is better last."""
    measures = dict.fromkeys(measure for each in rounds for measured in each.values() for measure in measured)
    return sorted(measures, key=lambda measure: measure in SMALLER_IS_BETTER)


def _comparable(one: Variant, other: Variant) -> bool:
    """Whether both have 4 bits, both 8, or both more."""
    return min(one.bits, 16) == min(other.bits, 16)


def _ratio(rounds: Sequence[Round], one: str | None, other: str | None, measure: str) -> str:
    return str((one and other and ratios(rounds, one, other, measure)) or "-")


def _figure(measure: str, spread: Spread | None) -> str:
    if spread is None:
        return "-"
    factor = UNITS.get(measure, ("", 1))[1]
    median, low, high = (_number(value * factor) for value in (spread.median, spread.low, spread.high))
    return f"{median} ({low}..{high})"


def _number(value: float) -> str:
    """With at least three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """An empty line, then the rows as aligned text. The first row has the headings."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    yield ""
    for name, *cells in rows:
        aligned = [f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True)]
        yield "  ".join([f"{name:<{widths[0]}}", *aligned]).rstrip()
