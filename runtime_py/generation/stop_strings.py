"""Stop strings: strings that end a generated text."""

from __future__ import annotations

from collections.abc import Sequence

from o2o.errors import UsageError


class StopStrings:
    """Ends a text before the first complete stop string, even if the string spans several pieces.

    Text that may be the beginning of a stop string is held back.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        """Start a text.

        Args:
            strings: The stop strings.

        Raises:
            UsageError: One of them is empty, or not a string.
        """
        for string in strings:
            if not isinstance(string, str):
                raise UsageError(f"a stop string is {string!r}: it must be a string")
        if "" in strings:
            raise UsageError("a stop string is empty: it would end every text at once")
        self._strings = tuple(strings)
        self._held = ""

    def push(self, piece: str) -> tuple[str, bool]:
        """Append a piece to the text.

        Args:
            piece: The next piece.

        Returns:
            The text that can be shown now, and whether a stop string is complete.
        """
        self._held += piece
        matches = [(at + len(one), at) for one in self._strings if (at := self._held.find(one)) >= 0]
        if matches:
            _, start = min(matches)
            shown, self._held = self._held[:start], ""
            return shown, True
        held = max((_overlap(self._held, one) for one in self._strings), default=0)
        shown = self._held[: len(self._held) - held]
        self._held = self._held[len(shown) :]
        return shown, False

    def flush(self) -> str:
        """Finish a text that ends for another reason.

        Returns:
            The text that was held back.
        """
        held, self._held = self._held, ""
        return held


def _overlap(text: str, string: str) -> int:
    """How many characters at the end of `text` may begin `string`."""
    longest = min(len(text), len(string) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(string[:n])), 0)
