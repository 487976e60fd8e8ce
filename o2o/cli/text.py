"""How messages count and list things."""

from __future__ import annotations

from collections.abc import Iterable

SHOWN = 12  # names in a message; a language model has a hundred


def counted(number: int, noun: str) -> str:
    """`1 input`, `1,496 operators`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def listed(names: Iterable[str], shown: int = SHOWN) -> str:
    """`a, b, c`, shortened for a line."""
    names = list(names)
    more = f", and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
