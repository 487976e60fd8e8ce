"""The engine interface: a loaded model, and sessions that hold the KV caches of one text each.

An engine owns what all texts share: the compiled model and its weights. A session owns the KV caches of one
text.

Any number of sessions may be used at once, each in one thread at a time. Their runs take turns: an engine
takes its `runtime_py.engines.step_lock.StepLock` for each chunk of a prompt and for each token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, Self

import numpy as np

from runtime_py.engines.cached_rows import CachedRows
from runtime_py.engines.prefill_plan import Chunk
from runtime_py.engines.step_lock import StepLock
from runtime_py.model.contract import Contract


class CausalLM(Protocol):
    """Reads one text and predicts its next token."""

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
            num_cached: How many leading ids, fewer than P, have their rows in the KV caches already. They
                are read again if `EngineSession.reusable` says so.

        Returns:
            The logits [V] float32 that follow the last token, which the caller owns.

        Raises:
            EngineClosed: The session or its engine was closed.
        """
        ...

    def decode(self, token: int, position: int) -> np.ndarray:
        """Feed one token and write its row.

        Args:
            token: A token id.
            position: Its position, below S. The rows of all positions before it must be valid.

        Returns:
            The logits [V] float32 that follow it, which the caller owns.

        Raises:
            EngineClosed: The session or its engine was closed.
        """
        ...

    def close(self) -> None:
        """Free the KV caches. The session cannot be used afterwards. Closing twice does nothing."""
        ...


class EngineSession(CausalLM, Protocol):
    """The KV caches of one text, and the calls that fill them."""

    def run(self, tokens: Sequence[int], chunk: Chunk) -> None:
        """Read a part of a prompt. Call it in a turn of `Engine.steps`.

        Args:
            tokens: Token ids [P].
            chunk: The first run of `plan(P, num_cached)`, where rows below `num_cached` are valid.
        """
        ...

    def logits(self, tokens: Sequence[int]) -> Iterator[np.ndarray]:
        """Read a text from its beginning, and yield the logits that follow each of its tokens.

        This is fast if the engine was loaded with `all_logits`, and `Engine.gives_all_logits`. Otherwise
        tokens are read one by one.

        Args:
            tokens: Token ids [P], 1 <= P <= S.

        Yields:
            The logits [T, V] float32 of each part of the text in order, which the caller owns.

        Raises:
            EngineClosed: The session or its engine was closed.
        """
        ...

    def verify(self, tokens: Sequence[int], position: int) -> np.ndarray:
        """Feed several tokens in one run and write their rows: tokens that a draft predicts, to be verified.

        Args:
            tokens: Token ids [T], at most the largest of `Engine.verify_lengths`.
            position: The position of the first. The rows of all positions before it must be valid.

        Returns:
            The logits [T, V] float32 that follow each of them, which the caller owns. They are not checked
            (`runtime_py.engines.finite_logits`): a draft may be wrong.

        Raises:
            EngineClosed: The session or its engine was closed.
        """
        ...

    def reusable(self, count: int) -> int:
        """Return how many leading rows a run can continue from.

        Args:
            count: The wanted number, at most the number of tokens that were read.

        Returns:
            `count`; 0 if window caches do not hold the rows before it any more. Then `prefill` reads the
            prompt from its beginning, and `decode` raises ValueError.
        """
        ...

    def copy_rows(self, source: Self, start: int, stop: int) -> None:
        """Copy rows from another session of the same engine. Call it in a turn of `Engine.steps`.

        Args:
            source: The other session, which may be in use in another thread.
            start: The first row. The rows before it are valid, and hold the same tokens in `source`.
            stop: The end of the rows, which are valid in `source`; `source.reusable(stop)` is `stop`.
        """
        ...

    def read_rows(self, stop: int) -> CachedRows | None:
        """Copy rows out of the KV caches. Call it in a turn of `Engine.steps`.

        Args:
            stop: The end of the rows, which are valid; `reusable(stop)` is `stop`.

        Returns:
            The rows; None if the model has caches of another kind, whose rows no other text can continue.
        """
        ...

    def write_rows(self, rows: CachedRows, start: int, stop: int) -> None:
        """Copy rows into the KV caches. Call it in a turn of `Engine.steps`.

        Args:
            rows: Rows that `read_rows` of any engine returned for the same model. Those of window caches
                include what a query at `stop` sees.
            start: The first row. The rows before it are valid, and equal in `rows`.
            stop: The end of the rows, at most S.

        Raises:
            RowsDoNotFit: They belong to another model. Nothing was changed.
        """
        ...


class Engine(Protocol):
    """A loaded model: its weights, compiled for one runtime."""

    @property
    def steps(self) -> StepLock:
        """The lock that sessions take for each run."""
        ...

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

    @property
    def gives_all_logits(self) -> bool:
        """Whether a prefill returns the logits of each token, so that `EngineSession.logits` is fast."""
        ...

    def verify_lengths(self, position: int) -> Sequence[int]:
        """Return the numbers of tokens that `EngineSession.verify` reads in one run.

        A run of fewer tokens may take as long as one of the next length, and write as many rows.

        Args:
            position: The position of the first token, below S.

        Returns:
            Ascending numbers T above 1, position + T <= S; empty for none.
        """
        ...

    def verify_setup(self, length: int) -> float:
        """Estimate the work that the first run of `EngineSession.verify` needs, as to open another graph.

        Args:
            length: T, one of `verify_lengths`.

        Returns:
            Seconds; 0 after the first run, or where it needs no such work.
        """
        ...

    def plan(self, length: int, num_cached: int = 0) -> Sequence[Chunk]:
        """See `EngineSession.plan`."""
        ...

    def open_session(self) -> EngineSession:
        """Open a session with empty KV caches.

        Returns:
            A new session.

        Raises:
            EngineClosed: The engine was closed.
        """
        ...

    def close(self) -> None:
        """Wait for the current run, and free the model. Closing twice does nothing.

        The engine and its sessions cannot be used afterwards.
        """
        ...
