"""The lock of an engine: sessions of different threads take turns, step by step, in order of arrival.

    with lock.turn():
        ...  # one run of the engine, or another short use of it

A step is one run: a chunk of a prompt, or one token. `threading.Lock` lets the thread that has just released
it take it again, and other threads starve. Here each turn waits for the turn before it (a CLH queue lock:
T. Craig, 1993).
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from o2o.errors import UsageError
from runtime_py import forks

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
        self._joining = threading.Lock()  # held for two assignments
        self._last: _Turn | None = None
        forks.watch(self)

    def turn(self) -> _Turn:
        """Return a context manager that waits for all earlier turns, and holds the engine inside.

        Returns:
            The turn. Entering it raises EngineClosed if the engine cannot be used any more. A turn inside
            another turn of the same engine would wait for itself.
        """
        return _Turn(self)

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
    """One turn: a node of the queue. It ends when `_done` is released."""

    __slots__ = ("_after", "_done", "_lock")

    def __init__(self, lock: StepLock) -> None:
        self._lock = lock
        self._done = threading.Lock()
        self._done.acquire()
        self._after: _Turn | None = None  # after an exception while it waited: the turn to wait for instead

    def __enter__(self) -> None:
        lock, previous = self._lock, None
        try:
            if lock._refusal is None:
                with lock._joining:
                    previous, lock._last = lock._last, self
                while previous is not None:
                    with previous._done:  # wait for its end; leave it open for others
                        pass
                    previous = previous._after
            if lock._refusal is not None:
                raise EngineClosed(lock._refusal)
        except BaseException:  # also KeyboardInterrupt, at any place
            self._after = previous
            self._done.release()
            raise

    @property
    def __exit__(self) -> Callable[..., None]:
        """Ends the turn in C: KeyboardInterrupt, which Python code may raise, cannot prevent it."""
        return self._done.__exit__


CLOSED_SESSION = StepLock(None, SESSION_CLOSED)
"""Takes the place of the engine's lock in a closed session."""
