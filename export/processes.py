"""Child processes that never outlive their parent's work, and signals that end both with cleanup."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from o2o.cli.interrupt import cleanup_at_exit
from o2o.errors import O2oError

Result = TypeVar("Result")

INTERRUPTING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
"""SIGALRM is the second try of SIGINT, see `o2o.cli.interrupt`."""


def run_parallel(
    tasks: Sequence[Callable[[], Result]], processes: int, on_done: Callable[[int], object]
) -> list[Result]:
    """Run tasks in child processes. On an error or an interrupt, all children are killed at once.

    Args:
        tasks: What to call; each must be picklable.
        processes: How many children run at a time.
        on_done: Called with 1 after each task.

    Returns:
        The result of each task, in their order.

    Raises:
        O2oError: A child was killed.
    """
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"))
    try:
        with cleanup_at_exit(_kill_children):
            with signals_blocked():
                futures = [pool.submit(task) for task in tasks]
            for future in as_completed(futures):
                future.result()
                on_done(1)
            return [future.result() for future in futures]
    except BrokenProcessPool:
        raise O2oError(
            "a process was killed during the export, most likely because memory ran out: try --jobs 1"
        ) from None
    except BaseException:
        _kill_children()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _kill_children() -> None:
    """Kill all children and wait until they are gone: they must not write while their files are removed."""
    children = multiprocessing.active_children()
    for child in children:
        child.kill()
    for child in children:
        child.join(1)


@contextlib.contextmanager
def signals_blocked() -> Iterator[set[int]]:
    """Delay the signals that interrupt, so that every started child is also recorded.

    Children inherit the blocked signals. The caller must end them, or restore the mask in them.

    Yields:
        The signals that were blocked before.
    """
    received: list[int] = []

    def record(number: int, frame: object) -> None:
        received.append(number)

    # Blocking them in this thread is not enough: the system may give a signal to a thread of a library, and
    # Python then runs the handler in this one.
    handlers = {number: signal.getsignal(number) for number in INTERRUPTING}
    handled = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in handled:
        signal.signal(number, record)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTING)
    try:
        yield mask
    finally:
        for number, handler in handled.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if received:
            signal.raise_signal(received[0])


@contextlib.contextmanager
def signals_interrupt(exception: type[BaseException] = KeyboardInterrupt) -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise an exception, as SIGINT does, so that cleanup runs.

    Args:
        exception: What to raise. SystemExit ends the command without a line, for a parent that prints one.

    Yields:
        Nothing.
    """

    def interrupt(number: int, frame: object) -> None:
        raise exception(128 + number)  # the exit code that a shell reports for this signal

    old = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
