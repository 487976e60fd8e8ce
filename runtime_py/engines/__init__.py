"""Engines: what computes logits. Each owns its caches and hides its runtime behind the same few calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from runtime_py.engines.prefill_plan import Chunk


class Engine(Protocol):
    """One model, one conversation: the caches belong to the engine and never leave it."""

    @property
    def capacity(self) -> int:
        """S, the number of positions the caches hold."""
        ...

    @property
    def vocab_size(self) -> int:
        """V, the number of logits; every id fed in is below it."""
        ...

    def plan(self, prompt: int, kept: int = 0) -> Sequence[Chunk]:
        """The runs in which `prefill` reads `prompt` ids."""
        ...

    def prefill(self, tokens: Sequence[int], kept: int = 0) -> np.ndarray:
        """Start anew with these ids [P], 1 <= P <= S, at positions 0 to P - 1.

        kept: how many of them, less than P, have been fed before at the same positions behind the same ids,
        and need not be read again. Returns the logits [V] float32 of what follows the last of them.
        """
        ...

    def decode(self, token: int, position: int) -> np.ndarray:
        """Feed one id at `position` < S; all positions below must have been fed.

        Returns the logits [V] float32 of what follows it.
        """
        ...

    def close(self) -> None:
        """Give back what the runtime holds. Nothing may be called afterwards."""
        ...
