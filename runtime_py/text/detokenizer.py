"""Text from tokens one at a time, as if all of them had been decoded at once."""

from __future__ import annotations

from runtime_py.text.tokenizer import Tokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """Turns ids into text pieces whose concatenation is `tokenizer.decode` of all the ids.

    What a token adds depends on its neighbours: the first token loses its leading space, bytes make a
    character only together. So ids are decoded in a window: a few that are shown already, then those that
    are not. A piece is held back while it could still change, that is while it ends in an incomplete
    character or in a run of bytes that the tokenizer decodes only as a whole.

    The cost of a token does not grow with the text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._first_new = 0  # where in the window what has not been shown begins
        self._shown = ""  # the text of the window that has been shown

    def push(self, token: int) -> str:
        """The text that `token` completes, "" if it completes none."""
        if self._tokenizer.is_hidden(token):
            return ""
        self._window.append(token)
        if self._tokenizer.is_byte(token):
            return ""
        text = self._tokenizer.decode(self._window)
        if text.endswith(REPLACEMENT):
            return ""
        return self._show(text)

    def flush(self) -> str:
        """The text that was held back. Call it after the last token."""
        return self._show(self._tokenizer.decode(self._window))

    def _show(self, text: str) -> str:
        piece = text[len(self._shown) :]
        new = self._window[self._first_new :]
        alone = self._tokenizer.decode(new)
        if alone.strip():  # else nothing would mark the place, and the next leading space would be lost
            self._window, text = new, alone
        self._first_new, self._shown = len(self._window), text
        return piece
