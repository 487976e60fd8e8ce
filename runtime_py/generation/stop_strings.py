"""Strings that end a text."""

from __future__ import annotations

from collections.abc import Sequence

from o2o.errors import UsageError


class StopStrings:
    """Ends a text before the first of some strings to be complete, however the text comes in pieces.

    What may be the beginning of one of them is held back.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        """Raises UsageError for an empty one."""
        if "" in strings:
            raise UsageError("a stop string is empty: it would end every text at once")
        self._strings = tuple(strings)
        self._held = ""

    def push(self, piece: str) -> tuple[str, bool]:
        """What can be shown now, and whether the text ends there."""
        self._held += piece
        ends = [(at + len(one), at) for one in self._strings if (at := self._held.find(one)) >= 0]
        if ends:
            shown, self._held = self._held[: min(ends)[1]], ""
            return shown, True
        held = max((_overlap(self._held, one) for one in self._strings), default=0)
        shown = self._held[: len(self._held) - held]
        self._held = self._held[len(shown) :]
        return shown, False

    def flush(self) -> str:
        """What was held back. Call it when the text ends otherwise."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, string: str) -> int:
    """How many characters at the end of `text` may begin `string`."""
    most = min(len(text), len(string) - 1)
    return next((n for n in range(most, 0, -1) if text.endswith(string[:n])), 0)
