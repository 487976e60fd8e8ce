"""The bytes of single tokens. A token may be a part of a character, which has no text of its own."""

from __future__ import annotations

import re

from runtime_py.text.tokenizer import Tokenizer
from runtime_py.text.tokenizer.token_ids import TokenIds

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # of SentencePiece


class TokenBytes:
    """Returns the bytes of tokens of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Use a tokenizer.

        Args:
            tokenizer: The tokenizer.
        """
        self._tokenizer = tokenizer
        self._alphabet = _byte_level_alphabet() if tokenizer.is_byte_level else None

    def __call__(self, token: int) -> bytes:
        """Return the bytes of a token, with its leading space.

        Args:
            token: An id.

        Returns:
            Its bytes; none if no token has the id. A special token has those of its name.
        """
        if isinstance(self._tokenizer, TokenIds):
            return f" {token}".encode()
        piece = self._tokenizer.piece(token)
        if piece is None:
            return b""
        if self._tokenizer.is_added(token):
            return piece.encode()
        if self._tokenizer.is_byte(token) and (match := _BYTE.fullmatch(piece)):
            return bytes([int(match[1], 16)])
        if self._alphabet is None:
            return piece.replace(_SPACE, " ").encode()
        if all(character in self._alphabet for character in piece):
            return bytes(self._alphabet[character] for character in piece)
        return piece.encode()

    def shown(self, token: int) -> bytes:
        """Return the bytes of a token in a text.

        Args:
            token: An id.

        Returns:
            Its bytes; none for a special token.
        """
        return b"" if self._tokenizer.is_hidden(token) else self(token)

    def text(self, token: int) -> str:
        """Return the text of a token.

        Args:
            token: An id.

        Returns:
            Its text, with replacement characters for incomplete characters.
        """
        return self(token).decode(errors="replace")


def _byte_level_alphabet() -> dict[str, int]:
    """The byte of each character of byte-level byte-pair encoding, as GPT-2 writes bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {chr(byte): byte for byte in printable}
    return characters | {chr(256 + index): byte for index, byte in enumerate(others)}
