"""One text in an engine's caches, which are not filled again with what they hold."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import numpy as np

from runtime_py.engines import Engine
from runtime_py.engines.prefill_plan import Chunk


class Session:
    """An engine that remembers what it was fed.

    Each turn of a conversation begins with all that was said before; only what is new is computed.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.runs: Sequence[Chunk] = ()
        """Those that read the last prompt."""
        self._fed: list[int] = []  # the ids behind the rows of the caches, from the first on

    @property
    def capacity(self) -> int:
        """S, see `Engine`."""
        return self.engine.capacity

    @property
    def vocab_size(self) -> int:
        """V, see `Engine`."""
        return self.engine.vocab_size

    @property
    def full(self) -> str:
        """What to say when the caches are."""
        return (
            f"the context is full: the model holds {self.capacity} tokens; export it with a larger "
            "--max-length for longer texts"
        )

    def kept(self, tokens: Sequence[int]) -> int:
        """How many of `tokens` need not be read: all but the last, at most, whose logits are wanted."""
        same = takewhile(lambda pair: pair[0] == pair[1], zip(tokens[:-1], self._fed, strict=False))
        return sum(1 for _ in same)

    def read(self, tokens: Sequence[int]) -> np.ndarray:
        """The logits [V] of what follows these ids [P], 1 <= P <= S, float32."""
        kept = self.kept(tokens)
        del self._fed[kept:]  # before: whoever interrupts finds nothing remembered that is not there
        self.runs = self.engine.plan(len(tokens), kept)
        logits = self.engine.prefill(tokens, kept)
        self._fed = list(tokens)
        return logits

    def append(self, token: int) -> np.ndarray:
        """The logits [V] of what follows this id behind those fed so far, fewer than S, float32."""
        logits = self.engine.decode(token, len(self._fed))
        self._fed.append(token)
        return logits
