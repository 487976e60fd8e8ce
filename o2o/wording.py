"""How messages count and list things."""

from __future__ import annotations

from collections.abc import Sequence

SHOWN = 12  # names in a message; a language model has a hundred


def counted(number: int, noun: str) -> str:
    """`1 input`, `1,496 operators`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """`a, b, c`, shortened for a line."""
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
