"""The engine interface: a loaded model, and sessions that hold the KV caches of one text each.

An engine owns what all texts share: the compiled model and its weights. A session owns what belongs to one
text: the KV caches, the bound input and output buffers, and the number of valid rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from runtime_py.engines.prefill_plan import Chunk
from runtime_py.model.contract import Contract


class EngineSession(Protocol):
    """The KV caches of one text, and the calls that fill them."""

    @property
    def capacity(self) -> int:
        """S, the number of rows of the KV caches."""
        ...

    @property
    def vocab_size(self) -> int:
        """V, the number of logits. Every token id is below it."""
        ...

    def plan(self, length: int, num_cached: int = 0) -> Sequence[Chunk]:
        """Return the runs that `prefill` splits a prompt into.

        Args:
            length: P, the number of tokens of the prompt.
            num_cached: How many of them `prefill` is to reuse.

        Returns:
            The runs in order.
        """
        ...

    def prefill(self, tokens: Sequence[int], num_cached: int = 0) -> np.ndarray:
        """Read a prompt: fill rows `num_cached` to P - 1 of the KV caches.

        Args:
            tokens: Token ids [P], 1 <= P <= S.
            num_cached: How many leading ids, fewer than P, have their rows in the KV caches already.

        Returns:
            The logits [V] float32 that follow the last token.
        """
        ...

    def decode(self, token: int, position: int) -> np.ndarray:
        """Feed one token and write its row.

        Args:
            token: A token id.
            position: Its position, below S. The rows of all positions before it must be valid.

        Returns:
            The logits [V] float32 that follow it.
        """
        ...

    def close(self) -> None:
        """Free the KV caches and buffers. The session cannot be used afterwards."""
        ...


class Engine(Protocol):
    """A loaded model: its weights, compiled for one runtime."""

    @property
    def contract(self) -> Contract:
        """The signatures of the loaded model."""
        ...

    @property
    def weight_dtype(self) -> str:
        """The dtype of the weights, for display (`runtime_py.model.weight_dtype`)."""
        ...

    @property
    def capacity(self) -> int:
        """S, the number of rows of the KV caches of each session."""
        ...

    @property
    def vocab_size(self) -> int:
        """V, the number of logits."""
        ...

    def plan(self, length: int, num_cached: int = 0) -> Sequence[Chunk]:
        """See `EngineSession.plan`."""
        ...

    def open_session(self) -> EngineSession:
        """Open a session with empty KV caches.

        Returns:
            A new session. Close it before the engine.
        """
        ...

    def close(self) -> None:
        """Free the model. The engine cannot be used afterwards."""
        ...
