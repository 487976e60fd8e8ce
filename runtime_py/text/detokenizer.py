"""Streaming detokenizer: the text of each new token, as if all tokens were decoded at once."""

from __future__ import annotations

from runtime_py.text.tokenizer import Tokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_OTHER_TEXT = "0"
"""A text of every tokenizer, also of `TokenIds`."""


class Detokenizer:
    """Turns token ids into pieces of text. Together they are `tokenizer.decode` of all ids.

    The text of a token depends on its neighbors: the first token loses its leading space, and several bytes
    form one character. The detokenizer therefore decodes a window: some ids already shown, then the new ones.
    A piece is held back while it may still change. This is so while it ends in an incomplete character, or in
    a run of bytes that the tokenizer decodes only as a whole.

    The time for a token does not grow with the text.
    """

    def __init__(self, tokenizer: Tokenizer, continues: bool = False) -> None:
        """Start a text.

        Args:
            tokenizer: The tokenizer of the ids.
            continues: The text follows another one: it keeps its leading space.
        """
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._first_new = 0  # the window's index of the first id that is not shown
        self._shown = ""  # the text of the window that is shown
        if continues:
            self._window = tokenizer.encode(_OTHER_TEXT, special=False)
            self._first_new, self._shown = len(self._window), tokenizer.decode(self._window)

    def push(self, token: int) -> str:
        """Append a token.

        Args:
            token: Its id.

        Returns:
            The text that it completes; "" for none.
        """
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
        """Finish the text.

        Returns:
            The text that was held back.
        """
        return self._show(self._tokenizer.decode(self._window))

    def _show(self, text: str) -> str:
        piece = text[len(self._shown) :]
        new = self._window[self._first_new :]
        alone = self._tokenizer.decode(new)
        if alone.strip():  # after an empty window, the next token would lose its leading space
            self._window, text = new, alone
        self._first_new, self._shown = len(self._window), text
        return piece
