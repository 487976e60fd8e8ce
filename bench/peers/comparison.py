"""Ratios of this project to its peers on several processors, as a Markdown table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from bench.peers.ratios import SMALLER_IS_BETTER, Round, best, ratios
from o2o.errors import UsageError


@dataclass(frozen=True)
class Column:
    """The measurements of one processor and one shape.

    Attributes:
        bits: Nominal bits of a weight, by variant.
        ours: The names of this project's variants.
        rounds: The rounds of all reports.
    """

    bits: dict[str, int]
    ours: set[str]
    rounds: list[Round]

    def cell(self, peer: str, measure: str) -> str:
        """Compare this project's best variant with a peer's variant of as many bits.

        Args:
            peer: The name of the peer's variant.
            measure: The measure.

        Returns:
            Median (lowest to highest) of the ratios within a round; "" if there is none.
        """
        if peer not in self.bits:
            return ""
        bits = min(self.bits[peer], 16)
        names = sorted(name for name in self.ours if min(self.bits[name], 16) == bits)
        winner = best(self.rounds, names, measure)
        spread = ratios(self.rounds, winner, peer, measure) if winner is not None else None
        return str(spread or "")


def read_report(file: Path) -> Mapping[str, Any]:
    """Read a file of `--json`.

    Args:
        file: The file.

    Returns:
        The report.

    Raises:
        UsageError: It is no report.
    """
    try:
        report: Mapping[str, Any] = json.loads(file.read_bytes())
        if report["version"] == 1 and isinstance(report["machine"], str) and report["shapes"]:
            return report
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError):
        pass
    raise UsageError(f"{file}: no measurements of `python -m bench.peers --json`")


def comparison(reports: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Format the ratios of reports, with a column for each processor.

    Reports of the same processor share a column. A ratio has this project's fastest variant of as many bits
    on the left, and comes from one round.

    Args:
        reports: Reports of `--json`.

    Yields:
        Lines of Markdown.
    """
    columns: dict[str, dict[str, Column]] = {}
    for report in reports:
        for shape, measured in report["shapes"].items():
            column = columns.setdefault(report["machine"], {}).setdefault(shape, Column({}, set(), []))
            column.bits.update((name, one["bits"]) for name, one in measured["variants"].items())
            column.ours.update(pair["ours"] for pair in measured["ratios"])
            column.rounds.extend(measured["rounds"])
    yield f"| this project relative to | {' | '.join(columns)} |"
    yield "|---" * (1 + len(columns)) + "|"
    for shape in dict.fromkeys(chain.from_iterable(columns.values())):
        of_shape = [column.get(shape, Column({}, set(), [])) for column in columns.values()]
        peers = dict.fromkeys(name for each in of_shape for name in each.bits if name not in each.ours)
        for peer in peers:
            for measure in _measures(of_shape):
                cells = [each.cell(peer, measure) for each in of_shape]
                if any(cells):
                    yield f"| {shape}, {peer}, {measure} | {' | '.join(cells)} |"


def _measures(columns: Sequence[Column]) -> list[str]:
    rounds = chain.from_iterable(column.rounds for column in columns)
    measures = dict.fromkeys(name for each in rounds for measured in each.values() for name in measured)
    return sorted(measures, key=lambda measure: measure in SMALLER_IS_BETTER)
