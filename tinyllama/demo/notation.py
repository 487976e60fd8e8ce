"""The line notation of the grammar's tables: marked entries that may run over several lines."""

from __future__ import annotations

MARKS = "-*!"


def entries(text: str, mark: str) -> list[list[str]]:
    """The ``|``-separated parts of every entry whose first line starts with the mark and a space.

    An entry ends where the next one, of whatever mark, begins; runs of white space count as one space.
    """
    found: list[str] = []
    kept = False
    for line in text.strip().splitlines():
        if line[:1] in MARKS and line[1:2] == " ":
            kept = line[0] == mark
            if kept:
                found.append(line[2:])
        elif kept:
            found[-1] += " " + line
    return [" ".join(entry.split()).split(" | ") for entry in found]
