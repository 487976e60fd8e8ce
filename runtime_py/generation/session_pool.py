"""The session pool: a bounded number of KV caches, which the texts of one engine use in turns.

When a text reads a prompt, it gets the first of these that there is:

    its own KV caches, if no other session took them
    caches of a closed session, those with the longest common prefix
    new caches, while there are fewer than `max_sessions`
    caches of an idle open session, the least recently used; it reads its text again when it continues

A prefix that other caches hold, or that was stored (`runtime_py.generation.prompt_cache`), is copied, not
computed. Between two chunks of a prompt the pool looks at other caches again. So of several texts that begin
alike at the same time, one computes the beginning.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any
from weakref import ref

import numpy as np

from o2o.errors import UsageError
from runtime_py import forks
from runtime_py.engines.cached_rows import CachedRows, RowsDoNotFit
from runtime_py.engines.engine import Engine, EngineSession
from runtime_py.engines.prefill_plan import Chunk
from runtime_py.engines.step_lock import CLOSED, FORKED, EngineClosed
from runtime_py.generation.common_prefix import num_shared
from runtime_py.generation.verification import Verification

if TYPE_CHECKING:
    from runtime_py.generation.prompt_cache import PromptCache

MAX_SESSIONS = 4
"""Default of the largest number of texts that have KV caches at the same time."""
MIN_COPY = 8
"""The smallest number of rows worth copying instead of computing."""


class TooManySessions(UsageError):
    """All KV caches that `max_sessions` allows belong to texts that are being generated."""


class Interrupted(UsageError):
    """Another thread interrupted the reading of a prompt."""


class SessionPool:
    """The KV caches of one engine. Methods may be called in any thread."""

    def __init__(
        self,
        engine: Engine,
        max_sessions: int = MAX_SESSIONS,
        rounded_drafts: bool = False,
        prompts: PromptCache | None = None,
    ) -> None:
        """Create a pool without KV caches.

        Args:
            engine: The engine. `close` closes it.
            max_sessions: The largest number of texts that have KV caches at the same time.
            rounded_drafts: See `runtime_py.engines.options.EngineOptions`.
            prompts: The stored prompts of the model; None for none.

        Raises:
            UsageError: `max_sessions` is no integer of 1 or more.
        """
        check_max_sessions(max_sessions)
        self.engine = engine
        self.max_sessions = max_sessions
        self.caches: list[Caches] = []
        """All KV caches, in use or not."""
        self.verification = Verification(rounded_drafts)
        """What is known about runs that verify drafts."""
        self.prompts = prompts
        """The stored prompts of the model."""
        self.refusal: str | None = None
        """Why the pool cannot be used any more; None while it can."""
        self._uses = count()
        # Reentrant: a generator that is collected inside such a block gives its caches back.
        self.choosing = threading.RLock()
        forks.watch(self)

    def claim(self, owner: object, tokens: Sequence[int], slot: int | None = None) -> Caches:
        """Choose the KV caches for a text, which keeps them until `Caches.release`.

        Args:
            owner: The session of the text. It can be weakly referenced.
            tokens: The ids [P] that the text is to read.
            slot: The number of the caches to choose if they are free, below `max_sessions`; None for any.

        Returns:
            The caches, which only the caller's thread may change.

        Raises:
            TooManySessions: All caches belong to texts that are being generated.
            EngineClosed: The pool was closed, or this process was forked since it was created.
        """
        with self.choosing:
            self.check_open()
            caches = self._choose(owner, tokens, slot)
            caches.owner, caches.last_use, caches.generating = ref(owner), next(self._uses), True
        try:
            caches.allocate()
        except BaseException:
            caches.give_back(owner)
            raise
        return caches

    @contextmanager
    def hold(self, slot: int) -> Iterator[Caches]:
        """Hold the caches of one number, which no text that is being generated has.

        Args:
            slot: Their number.

        Yields:
            The caches.

        Raises:
            TooManySessions: A text that is being generated has them.
            UsageError: `slot` is not below `max_sessions`.
            EngineClosed: See `claim`.
        """
        holder = _Holder()
        with self.choosing:
            self.check_open()
            if not 0 <= slot < self.max_sessions:
                raise UsageError(f"there is no slot {slot}: slots are 0 to {self.max_sessions - 1}")
            if (caches := self._numbered(slot)).generating:
                raise TooManySessions(f"slot {slot} is in use: wait until its text has ended")
            caches.owner, caches.generating = ref(holder), True
        try:
            caches.allocate()
            yield caches
        finally:
            caches.give_back(holder)

    def check_open(self) -> None:
        """Raise EngineClosed if the pool was closed, or this process was forked since it was created."""
        if self.refusal is not None:
            raise EngineClosed(self.refusal)

    def close(self) -> None:
        """Close the engine and free all KV caches. Waits for the current run. Closing twice does nothing.

        Sessions that are open raise EngineClosed at their next use.
        """
        if self.refusal is not None:
            return
        self.refusal = CLOSED
        self.engine.close()
        with self.choosing:
            for caches in self.caches:
                caches.free()

    def after_fork_in_child(self) -> None:
        """Refuse the sessions of the parent process."""
        self.choosing = threading.RLock()  # another thread of the parent may hold it
        self.refusal = self.refusal or FORKED

    def _numbered(self, slot: int) -> Caches:
        while len(self.caches) <= slot:
            self.caches.append(Caches(self))
        return self.caches[slot]

    def _choose(self, owner: object, tokens: Sequence[int], slot: int | None) -> Caches:
        if own := [caches for caches in self.caches if caches.owner() is owner]:
            return own[0]
        if slot is not None and slot < self.max_sessions and not (one := self._numbered(slot)).generating:
            return one
        free = [caches for caches in self.caches if not caches.generating]
        if closed := [caches for caches in free if caches.owner() is None]:
            return max(closed, key=lambda caches: (num_shared(tokens, caches.tokens), -caches.last_use))
        if len(self.caches) < self.max_sessions:
            self.caches.append(caches := Caches(self))
            return caches
        if free:
            return min(free, key=lambda caches: caches.last_use)
        texts = "1 text is" if self.max_sessions == 1 else f"{self.max_sessions} texts are"
        raise TooManySessions(
            f"{texts} being generated, the limit of max_sessions: finish or "
            "close one of them first, or load the package with a larger max_sessions"
        )


class Caches:
    """The KV caches of one text, and the ids of their valid rows."""

    def __init__(self, pool: SessionPool) -> None:
        """Create an entry of the pool. `allocate` opens its engine session.

        Args:
            pool: The pool.
        """
        self.owner: Callable[[], object] = _no_owner
        """Returns the session; None if it was closed or does not exist any more."""
        self.generating = False
        """Whether a session uses the caches now. Then no other session may take them."""
        self.last_use = 0
        self.tokens: list[int] = []
        """The ids of the valid rows. Between turns of the engine other threads may copy these rows."""
        self.runs: list[Chunk] = []
        """The runs that read the last prompt."""
        self._pool = pool
        self._session: EngineSession | None = None

    def allocate(self) -> None:
        """Open the engine session, if it is not open."""
        if self._session is None:
            self._session = self._pool.engine.open_session()

    def read(self, tokens: Sequence[int], interrupted: Callable[[], bool] = lambda: False) -> np.ndarray:
        """Read a prompt, except for rows that these or other caches hold.

        Args:
            tokens: Token ids [P], 1 <= P <= S.
            interrupted: Is asked before each run of a prompt that needs several.

        Returns:
            The logits [V] float32 that follow the last token.

        Raises:
            Interrupted: `interrupted` returned true. The rows so far stay valid.
        """
        assert self._session is not None
        tokens = list(tokens)
        # before a run overwrites their rows
        del self.tokens[self._session.reusable(num_shared(tokens, self.tokens)) :]
        self.runs = []
        self._take_stored(tokens)
        chunks = self._plan(tokens)
        while len(chunks) > 1 or self._longer_prefix(tokens):
            if interrupted():
                raise Interrupted("the reading of the prompt was interrupted")
            with self._pool.engine.steps.turn():
                if longer := self._longer_prefix(tokens):
                    source, shared = longer
                    self._session.copy_rows(source, len(self.tokens), shared)
                    self.tokens = tokens[:shared]
                    chunks = self._plan(tokens)
                elif len(chunks) > 1:
                    self._session.run(tokens, chunks[0])
                    self.tokens = tokens[: chunks[0].stop]
                    self.runs.append(chunks.popleft())
        logits = self._session.prefill(tokens, len(self.tokens))
        self.tokens = tokens
        self.runs += chunks
        return logits

    def append(self, token: int, position: int) -> np.ndarray:
        """Feed the next token of the text.

        Args:
            token: A token id.
            position: Its position, below S. Later rows, of a draft, are dropped.

        Returns:
            The logits [V] float32 that follow it.
        """
        assert self._session is not None
        del self.tokens[position:]
        logits = self._session.decode(token, position)
        self.tokens.append(token)
        return logits

    def verify(self, tokens: Sequence[int], position: int) -> np.ndarray:
        """Feed the next token of the text and a draft.

        Args:
            tokens: Their ids [T]; see `EngineSession.verify`.
            position: The position of the first. Later rows, of another draft, are dropped.

        Returns:
            The logits [T, V] float32 that follow each.
        """
        assert self._session is not None
        del self.tokens[position:]
        logits = self._session.verify(tokens, position)
        self.tokens += tokens
        return logits

    def rows(self) -> CachedRows | None:
        """Copy all valid rows out.

        Returns:
            The rows; see `EngineSession.read_rows`.
        """
        assert self._session is not None
        with self._pool.engine.steps.turn():
            return self._session.read_rows(len(self.tokens))

    def take(self, tokens: Sequence[int], rows: CachedRows) -> None:
        """Copy the rows of another text in, in place of the present ones.

        Args:
            tokens: Their ids [P].
            rows: The rows.

        Raises:
            RowsDoNotFit: See `EngineSession.write_rows`.
        """
        assert self._session is not None
        with self._pool.engine.steps.turn():
            self.tokens = []
            self._session.write_rows(rows, 0, len(tokens))
            self.tokens = list(tokens)

    def release(self, owner: object) -> None:
        """End the use of the caches. Another session may take them when none are free.

        Args:
            owner: The session that used them. Nothing is changed if they were taken away from it.
        """
        with self._pool.choosing:
            if self.owner() is owner:
                self.generating = False

    def give_back(self, owner: object) -> None:
        """End the use of the caches by a session that is closed. Another session takes these first.

        Args:
            owner: See `release`.
        """
        with self._pool.choosing:
            if self.owner() is owner:
                self.owner, self.generating = _no_owner, False

    def free(self) -> None:
        """Free the KV caches, after the engine was closed."""
        if self._session is not None:
            self._session.close()

    def _take_stored(self, tokens: list[int]) -> None:
        """Copy rows of a stored prompt, if it has more than all caches do."""
        prompts = self._pool.prompts
        longer = self._longer_prefix(tokens)
        enough = (longer[1] if longer else len(self.tokens)) + MIN_COPY
        if prompts is None or len(tokens) <= enough:
            return
        assert self._session is not None
        window = self._pool.engine.contract.decode.window
        if (stored := prompts.find(tokens, enough, window)) is None:
            return
        rows, count = stored
        with self._pool.engine.steps.turn():
            try:
                self._session.write_rows(rows, len(self.tokens), count)
            except RowsDoNotFit:
                return
            self.tokens = tokens[:count]

    def _plan(self, tokens: Sequence[int]) -> deque[Chunk]:
        assert self._session is not None
        return deque(self._session.plan(len(tokens), len(self.tokens)))

    def _longer_prefix(self, tokens: list[int]) -> tuple[EngineSession, int] | None:
        """Other caches with more rows of this text, and the number of these rows.

        In a turn of the engine these rows are valid: a thread shortens `tokens` before it runs the engine.
        """
        enough = len(self.tokens) + MIN_COPY
        best: tuple[EngineSession, int] | None = None
        for other in [*self._pool.caches]:
            if other is not self and other._session is not None and len(other.tokens) >= enough:
                shared = other._session.reusable(num_shared(tokens, other.tokens))
                if shared >= enough:
                    best, enough = (other._session, shared), shared + 1
        return best


class _Holder:
    """The owner of caches that no session uses."""


def check_max_sessions(number: Any) -> None:
    """Check the largest number of texts that have KV caches.

    Args:
        number: The number.

    Raises:
        UsageError: It is no integer of 1 or more.
    """
    if type(number) is not int or number < 1:
        raise UsageError(f"max_sessions is {number!r}: it must be an integer of 1 or more")


def _no_owner() -> None:
    return None
