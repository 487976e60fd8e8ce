"""A tokenizer of numbers, for models without a tokenizer: a text is the ids of its tokens, `1 403 407`."""

from __future__ import annotations

from collections.abc import Sequence

import tokenizers
from tokenizers import models

from o2o.errors import UsageError
from runtime_py.text.tokenizer import Tokenizer

NAME = "ids"
"""What `--tokenizer` calls it."""


class TokenIds(Tokenizer):
    """Encodes and decodes token ids as decimal numbers with spaces between."""

    def __init__(self) -> None:
        """Make the tokenizer, which is the same for all models."""
        super().__init__(tokenizers.Tokenizer(models.WordLevel({}, "")), {})

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Read numbers.

        Args:
            text: Decimal numbers, separated by spaces or commas.
            special: Ignored: no token is added.

        Returns:
            The numbers.

        Raises:
            UsageError: The text has something else.
        """
        words = text.replace(",", " ").split()
        if wrong := next((word for word in words if not (word.isascii() and word.isdecimal())), None):
            raise UsageError(
                f"--tokenizer {NAME}: {wrong[:40]!r} is no token id: give numbers, such as 1 403 407"
            )
        return [int(word) for word in words]

    def decode(self, ids: Sequence[int]) -> str:
        """Write numbers.

        Args:
            ids: Token ids.

        Returns:
            Decimal numbers, separated by spaces.
        """
        return " ".join(map(str, ids))

    def is_hidden(self, token: int) -> bool:
        return False
