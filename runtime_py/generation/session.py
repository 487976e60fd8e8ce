"""A text session that reuses its KV caches: a prefix that was read before is not read again."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import numpy as np

from runtime_py.engines.engine import EngineSession
from runtime_py.engines.prefill_plan import Chunk


class Session:
    """One text in an engine session. It remembers the token ids of the text.

    Each turn of a conversation begins with all turns before it; only the new tokens are computed.
    """

    def __init__(self, engine_session: EngineSession) -> None:
        """Wrap an engine session.

        Args:
            engine_session: A session of an engine, which nothing else may use.
        """
        self.runs: Sequence[Chunk] = ()
        """The runs that read the last prompt."""
        self._engine_session = engine_session
        self._tokens: list[int] = []  # the ids of the valid rows of the KV caches

    @property
    def capacity(self) -> int:
        """S, the number of rows of the KV caches."""
        return self._engine_session.capacity

    @property
    def vocab_size(self) -> int:
        """V, the number of logits."""
        return self._engine_session.vocab_size

    @property
    def context_full_message(self) -> str:
        """The message for the user when the KV caches are full."""
        return (
            f"the context is full: the KV caches hold {self.capacity} tokens; export the model with a "
            f"larger --max-length for longer texts"
        )

    def num_cached(self, tokens: Sequence[int]) -> int:
        """Return how many leading tokens have valid rows in the KV caches.

        Args:
            tokens: Token ids [P].

        Returns:
            At most P - 1: the last token is always read, for its logits.
        """
        pairs = zip(tokens[:-1], self._tokens, strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    def read(self, tokens: Sequence[int]) -> np.ndarray:
        """Read a prompt.

        Args:
            tokens: Token ids [P], 1 <= P <= S.

        Returns:
            The logits [V] float32 that follow the last token.
        """
        num_cached = self.num_cached(tokens)
        del self._tokens[num_cached:]  # first, so that after an interrupt only valid rows are remembered
        self.runs = self._engine_session.plan(len(tokens), num_cached)
        logits = self._engine_session.prefill(tokens, num_cached)
        self._tokens = list(tokens)
        return logits

    def append(self, token: int) -> np.ndarray:
        """Feed the next token of the text.

        Args:
            token: A token id; fewer than S have been fed.

        Returns:
            The logits [V] float32 that follow it.
        """
        logits = self._engine_session.decode(token, len(self._tokens))
        self._tokens.append(token)
        return logits

    def close(self) -> None:
        """Free the KV caches. The session cannot be used afterwards."""
        self._engine_session.close()
