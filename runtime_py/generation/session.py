"""A session: one text, and its place in the session pool."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from o2o.errors import UsageError
from runtime_py.engines.cached_rows import CachedRows
from runtime_py.engines.prefill_plan import Chunk
from runtime_py.engines.step_lock import SESSION_CLOSED, EngineClosed
from runtime_py.engines.token_ids import check_prompt
from runtime_py.generation.session_pool import Caches, SessionPool
from runtime_py.generation.verification import Verification

BUSY = "the session is generating another text: close that stream first, or open a session for each text"


@dataclass
class DraftStats:
    """Counts of one session.

    Attributes:
        runs: Runs that verified a draft.
        drafted: Tokens of these drafts.
        accepted: Drafted tokens that were chosen.
    """

    runs: int = 0
    drafted: int = 0
    accepted: int = 0


class Session:
    """One text of a model. It remembers the token ids of the text.

    Each turn of a conversation begins with all turns before it; only the new tokens are computed. A session
    without a text has no KV caches. `runtime_py.generation.session_pool` gives it caches when it reads a
    prompt. Sessions of one engine may be used in different threads.

        with package.session() as session:
            for token in package.stream("Once upon a time", session=session):
                ...
    """

    def __init__(self, pool: SessionPool, slot: int | None = None) -> None:
        """Create a session without a text.

        Args:
            pool: The KV caches of the engine.
            slot: The number of the KV caches to use if they are free; see `SessionPool.claim`.
        """
        self._slot = slot
        self.runs: Sequence[Chunk] = ()
        """The runs that read the last prompt."""
        self.pool = pool
        """The KV caches of the engine."""
        self.drafts = DraftStats()
        """What became of the drafts of all its texts (`runtime_py.generation.speculation`)."""
        self._tokens: list[int] = []
        self._caches: Caches | None = None  # of the last step; another session may have taken them since
        self._closed = False
        self._interrupted = False
        self._stepping = threading.Lock()
        self._generating = threading.Lock()

    @property
    def capacity(self) -> int:
        """S, the number of rows of the KV caches."""
        return self.pool.engine.capacity

    @property
    def vocab_size(self) -> int:
        """V, the number of logits."""
        return self.pool.engine.vocab_size

    def verify_lengths(self, position: int) -> Sequence[int]:
        """Return the numbers of tokens that `verify` may feed (`runtime_py.engines.engine.Engine`).

        Args:
            position: The position of the first token.

        Returns:
            Ascending numbers above 1; empty for none.
        """
        return self.pool.engine.verify_lengths(position)

    def verify_setup(self, length: int) -> float:
        """Estimate the one-time work of `verify` (`runtime_py.engines.engine.Engine`).

        Args:
            length: T.

        Returns:
            Seconds; 0 for none.
        """
        return self.pool.engine.verify_setup(length)

    @property
    def verification(self) -> Verification:
        """What is known about runs of its engine that verify drafts."""
        return self.pool.verification

    @property
    def context_full_message(self) -> str:
        """The message for the user when the KV caches are full."""
        return (
            f"the context is full: the KV caches hold {self.capacity} tokens; convert the model with a "
            f"larger --max-length for longer texts"
        )

    @contextmanager
    def generation(self) -> Iterator[None]:
        """Hold the KV caches between the steps inside: no other session takes them.

        Yields:
            Nothing.

        Raises:
            UsageError: The session is in another `generation` already.
            EngineClosed: The session or its engine was closed.
        """
        self._check_open()
        if not self._generating.acquire(blocking=False):
            raise UsageError(BUSY)
        try:
            yield
        finally:
            self._generating.release()
            self.pool.engine.steps.end_slice()
            if self._caches is not None:
                self._caches.release(self)

    def read(self, tokens: Sequence[int]) -> np.ndarray:
        """Read a prompt.

        Args:
            tokens: Token ids [P], 1 <= P <= S.

        Returns:
            The logits [V] float32 that follow the last token.

        Raises:
            TooManySessions: All KV caches belong to texts that are being generated.
            EngineClosed: The session or its engine was closed.
            Interrupted: See `interrupt`.
            UsageError: See `runtime_py.engines.token_ids.check_prompt`.
            ModelError: An id is not below V, or logits are not finite.
        """
        with self._stepping:
            self._check_open()
            return self._read(check_prompt(tokens, self))

    def append(self, token: int) -> np.ndarray:
        """Feed the next token of the text.

        Args:
            token: A token id; fewer than S have been fed.

        Returns:
            The logits [V] float32 that follow it.

        Raises:
            TooManySessions: See `read`.
            EngineClosed: See `read`.
        """
        with self._stepping:
            self._check_open()
            if self._generating.locked() and self._caches is not None:
                logits = self._caches.append(token, len(self._tokens))
                self._tokens.append(token)
                return logits
            return self._read(
                check_prompt([*self._tokens, token], self)
            )  # only the new token, unless the caches were taken

    def rows(self) -> CachedRows | None:
        """Copy the rows of the text out, directly after `read`. Only inside of `generation`.

        Returns:
            The rows; None if the model has caches of another kind (`EngineSession.read_rows`).

        Raises:
            EngineClosed: See `read`.
        """
        with self._stepping:
            self._check_open()
            assert self._caches is not None
            return self._caches.rows()

    def interrupt(self) -> None:
        """End the reading of a prompt in another thread, between two of its runs.

        There `read` raises Interrupted, now or at its next prompt.
        """
        self._interrupted = True

    def verify(self, token: int, draft: Sequence[int]) -> np.ndarray:
        """Feed the next token of the text and a draft of the tokens behind it. Only inside of `generation`.

        Args:
            token: A token id; fewer than S - D have been fed.
            draft: Token ids [D]. `accept` makes the first ones a part of the text.

        Returns:
            The logits [1 + D, V] float32 that follow each. They are not checked.

        Raises:
            EngineClosed: See `read`.
        """
        with self._stepping:
            self._check_open()
            assert self._caches is not None
            logits = self._caches.verify([token, *draft], len(self._tokens))
            self._tokens.append(token)
            return logits

    def back(self) -> None:
        """Take the last token of the text back. Its row in the KV caches is overwritten by the next one."""
        with self._stepping:
            self._check_open()
            self._tokens.pop()

    def accept(self, token: int) -> None:
        """Make the next drafted token a part of the text, instead of feeding it.

        Args:
            token: The first token of the draft that was not accepted yet.
        """
        with self._stepping:
            self._check_open()
            self._tokens.append(token)

    def close(self) -> None:
        """Give the KV caches back. Waits for the current step. The session cannot be used afterwards."""
        if self.pool.refusal is None:
            with self._stepping:
                self._closed = True
                if self._caches is not None:
                    self._caches.give_back(self)
        self._closed, self._caches = True, None

    def __reduce__(self) -> NoReturn:
        raise TypeError("a session cannot be copied or pickled: open a session for each text")

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, tokens: list[int]) -> np.ndarray:
        self._caches = caches = self.pool.claim(self, tokens, self._slot)
        try:
            logits = caches.read(tokens, lambda: self._interrupted)
        finally:
            self.runs = caches.runs
            if not self._generating.locked():
                caches.release(self)
        self._tokens = tokens
        return logits

    def _check_open(self) -> None:
        self.pool.check_open()
        if self._closed:
            raise EngineClosed(SESSION_CLOSED)
