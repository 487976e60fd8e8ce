"""Counts, lists and quotations in messages."""

from __future__ import annotations

from collections.abc import Iterable

SHOWN = 12  # names in a message; a language model has a hundred
LONGEST_LINE = 300  # characters of a message that quotes an argument


def counted(number: int, noun: str, plural: str = "") -> str:
    """Format a count: `1 input`, `1,496 operators`.

    Args:
        number: The count.
        noun: In the singular.
        plural: The plural; empty for `noun` and an s.

    Returns:
        Number and noun.
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def listed(names: Iterable[str], shown: int = SHOWN) -> str:
    """Format names as `a, b, c`, each once, shortened for a line.

    Args:
        names: In their order. Repeated names are dropped.
        shown: The largest number of names in the result.

    Returns:
        The list, which ends with `and N more` if it is shortened.
    """
    names = list(dict.fromkeys(names))
    more = f", and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def one_line(text: str, longest: int = LONGEST_LINE) -> str:
    """Shorten a text that quotes what a user typed, such as a whole prompt in the place of a flag.

    Args:
        text: Any text.
        longest: The largest number of its characters that are shown.

    Returns:
        The text in one line, which ends with `...` if it is shortened.
    """
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[:longest]}..."
