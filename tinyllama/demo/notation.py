"""The line notation of the grammar's tables: marked entries that may run over several lines."""

from __future__ import annotations

MARKS = "-*!"


def entries(text: str, mark: str) -> list[list[str]]:
    """Parse the entries with a mark.

    An entry ends where the next one, of any mark, begins. Runs of white space count as one space.

    Args:
        text: The table.
        mark: The character that an entry's first line starts with, followed by a space.

    Returns:
        The ``|``-separated parts of each entry.
    """
    parsed: list[str] = []
    matches = False
    for line in text.strip().splitlines():
        if line[:1] in MARKS and line[1:2] == " ":
            matches = line[0] == mark
            if matches:
                parsed.append(line[2:])
        elif matches:
            parsed[-1] += " " + line
    return [" ".join(entry.split()).split(" | ") for entry in parsed]
