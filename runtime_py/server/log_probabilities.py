"""Log-probabilities of tokens, in OpenAI's two forms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from runtime_py.generation.generate import Token
from runtime_py.text.token_bytes import TokenBytes

LOWEST = -9999.0
"""Stands for log 0, which JSON cannot write; OpenAI uses the same number."""


def chat_entry(token: Token, token_bytes: TokenBytes) -> dict[str, Any]:
    """Write a token for `/v1/chat/completions`.

    Args:
        token: A token with its log-probability.
        token_bytes: The bytes of each token.

    Returns:
        An element of `logprobs.content`.
    """
    top = [_entry(id, log_probability, token_bytes) for id, log_probability in token.top]
    return {**_entry(token.id, token.log_probability, token_bytes), "top_logprobs": top}


def completion_entries(tokens: Sequence[Token], token_bytes: TokenBytes, offset: int) -> dict[str, Any]:
    """Write tokens for `/v1/completions`.

    Args:
        tokens: The tokens.
        token_bytes: The bytes of each token.
        offset: The number of characters before them.

    Returns:
        `logprobs` of a choice.
    """
    texts = [token_bytes.text(token.id) for token in tokens]
    offsets = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    return {
        "tokens": texts,
        "token_logprobs": [finite(token.log_probability) for token in tokens],
        "top_logprobs": [_top(token, token_bytes) for token in tokens],
        "text_offset": offsets,
    }


def finite(log_probability: float | None) -> float | None:
    """Replace log 0.

    Args:
        log_probability: In nats; None for the first token of a text.

    Returns:
        A number that JSON can write; None for None.
    """
    if log_probability is None:
        return None
    return log_probability if math.isfinite(log_probability) else LOWEST


def _top(token: Token, token_bytes: TokenBytes) -> dict[str, float | None] | None:
    if token.log_probability is None:
        return None
    top = {token_bytes.text(token.id): finite(token.log_probability)}  # OpenAI always has the token itself
    return {**{token_bytes.text(id): finite(value) for id, value in token.top}, **top}


def _entry(token: int, log_probability: float | None, token_bytes: TokenBytes) -> dict[str, Any]:
    content = token_bytes(token)
    return {
        "id": token,
        "token": content.decode(errors="replace"),
        "logprob": finite(log_probability),
        "bytes": list(content),
    }


class PendingTokens:
    """The tokens of a text whose log-probabilities were not sent.

    Tokens wait until their text is shown: those of a stop string are never shown.
    """

    def __init__(self, token_bytes: TokenBytes) -> None:
        """Begin a text.

        Args:
            token_bytes: The bytes of each token.
        """
        self._bytes = token_bytes
        self._tokens: list[Token] = []
        self._size = 0  # bytes that were shown, less those of the tokens that were returned

    def push(self, token: Token) -> list[Token]:
        """Add a token.

        Args:
            token: The token.

        Returns:
            The tokens whose text is shown now.
        """
        self._tokens.append(token)
        if token.finish not in (None, "stop"):
            shown, self._tokens = self._tokens, []
            return shown
        self._size += len(token.text.encode())
        count = 0
        for each in self._tokens:
            size = len(self._bytes.shown(each.id))
            if size and self._size <= 0:
                break
            self._size -= size
            count += 1
        shown, self._tokens = self._tokens[:count], self._tokens[count:]
        return shown
