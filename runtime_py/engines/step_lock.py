"""The lock of an engine: sessions of different threads take turns, run by run.

    with lock.turn():
        ...  # one run of the engine, or another short use of it

A turn is one run: a chunk of a prompt, or one token. Threads wait in order of arrival. `threading.Lock` lets
the thread that has just released it take it again, and the others starve.

Waking a thread on another core takes as long as a step of a small model. So the thread that has the engine
goes before the waiting ones until its slice of `SLICE` seconds has passed. While it does something else for
longer, the first waiting thread takes the engine.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from o2o.errors import UsageError
from runtime_py import forks

SLICE = 0.01
"""Seconds in which a thread may use the engine again before the waiting ones.

Longer slices need fewer switches; shorter ones give the first token of a new text sooner.
"""
POLL = 0.001
"""Seconds without a new turn after which the first waiting thread takes the engine within a slice."""
CLOSED = "the model was closed while it was in use: open a new session"
FORKED = "the session was opened before this process was forked: open a new session in this process"
SESSION_CLOSED = "the session was closed: open a new session"


class EngineClosed(UsageError):
    """An engine or a session was used after it was closed, or in a forked child process."""


class StepLock:
    """A fair lock of one engine. It also refuses turns after the engine was closed, and in a forked child."""

    def __init__(self, owner: object, refusal: str | None = None) -> None:
        """Create the lock.

        Args:
            owner: The engine. A forked child never frees it.
            refusal: The message of the error that each turn raises; None to allow turns.
        """
        self._owner = owner
        self._refusal = refusal
        self._choosing = threading.Lock()  # guards the following attributes
        self._current: _Turn | None = None  # the turn that began last
        self._last: _Turn | None = None  # the last turn that had to wait
        self._slice_thread, self._slice_end = 0, 0.0
        self._wakeup = threading.Lock()  # unlocked for a moment to wake the first waiting thread
        self._wakeup.acquire()
        forks.watch(self)

    def turn(self) -> _Turn:
        """Return a context manager that waits for the engine, and holds it inside.

        Returns:
            The turn. Entering it raises EngineClosed if the engine cannot be used any more. A turn inside
            another turn of the same engine would wait for itself.
        """
        return _Turn(self)

    def end_slice(self) -> None:
        """Let waiting threads go first, because this thread has finished its text."""
        if self._slice_thread == threading.get_ident():
            self._slice_end = 0.0
            if self._last is not None and self._last._is_waiting and self._wakeup.locked():
                self._wakeup.release()

    def close(self, free: Callable[[], object]) -> None:
        """Refuse all later turns. Waits for the earlier ones. Does nothing the second time.

        Args:
            free: Frees the engine. It is called in the last turn.
        """
        try:
            with self.turn():
                self._refusal = CLOSED
                free()
        except EngineClosed:
            pass

    def after_fork_in_child(self) -> None:
        """Refuse all turns: the engine's worker threads do not exist in this process."""
        if self._refusal is None:
            self._refusal = FORKED
            forks.never_free(self._owner)


class _Turn:
    """One turn. Its locks are locked when it is created: the end of the turn, and the end of its waiting."""

    __slots__ = ("_after", "_ended", "_lock", "_waited")

    def __init__(self, lock: StepLock) -> None:
        self._lock = lock
        self._ended = threading.Lock()
        self._ended.acquire()
        self._waited: threading.Lock | None = None  # only of a turn that has to wait
        self._after: _Turn | None = None  # of a turn that gave up waiting: the turn to wait for instead

    def __enter__(self) -> None:
        lock = self._lock
        try:
            if lock._refusal is None and not self._begin():
                self._wait()
            if lock._refusal is not None:
                raise EngineClosed(lock._refusal)
        except BaseException:  # also KeyboardInterrupt, at any place
            self._ended.release()
            raise

    @property
    def __exit__(self) -> Callable[..., None]:
        """Ends the turn in C: KeyboardInterrupt, which Python code may raise, cannot prevent it."""
        return self._ended.__exit__

    def _begin(self, first: bool = False) -> bool:
        """Take the engine if it is unused and no other thread goes first. Return whether it is taken.

        first: Whether this is the first of the waiting turns.
        """
        lock, thread, now = self._lock, threading.get_ident(), time.monotonic()
        with lock._choosing:
            if lock._current is not None and lock._current._ended.locked():
                return False
            if thread != lock._slice_thread or now >= lock._slice_end:
                others = lock._last is not None and lock._last._is_waiting
                if not first and (others or now < lock._slice_end):
                    return False
                lock._slice_thread, lock._slice_end = thread, now + SLICE
            lock._current = self
            return True

    def _wait(self) -> None:
        """Wait for the turns that have been waiting, then for the engine."""
        lock, previous = self._lock, None
        self._waited = threading.Lock()
        self._waited.acquire()
        try:
            with lock._choosing:
                previous, lock._last = lock._last, self
            while previous is not None:
                if previous._waited is not None:
                    with previous._waited:  # until it is released; leave it so
                        pass
                previous = previous._after
            current: _Turn | None = None
            while True:
                rest = lock._slice_end - time.monotonic()
                if (rest <= 0 or lock._current is current) and self._begin(first=True):
                    return
                current = lock._current
                if rest > 0:
                    lock._wakeup.acquire(timeout=min(rest, POLL))
                elif current is not None:
                    with current._ended:  # wait for its end
                        pass
        finally:
            self._after = previous
            self._waited.release()

    @property
    def _is_waiting(self) -> bool:
        return self._waited is not None and self._waited.locked()


CLOSED_SESSION = StepLock(None, SESSION_CLOSED)
"""Takes the place of the engine's lock in a closed session."""
