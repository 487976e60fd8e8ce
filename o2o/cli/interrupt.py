"""SIGINT (Ctrl-C): a command ends at any time, with one line on stderr and exit code 130.

Python raises KeyboardInterrupt for SIGINT. During imports nothing catches it, and Python prints a traceback.
A command therefore calls `exit_on_interrupt` first: SIGINT ends the process at once, as there is nothing to
clean up. `o2o.cli.command.run` then runs the body in `interruptible`. There SIGINT raises KeyboardInterrupt,
and the process ends at the latest `DEADLINE` later. After the body SIGINT is ignored.

This module imports nothing slow. A process that never calls `exit_on_interrupt` keeps its signal handlers.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

INTERRUPTED = 130  # as a shell reports SIGINT
MESSAGE = "interrupted"
DEADLINE = 1.5  # seconds that cleaning up may take
RETRY = 0.05  # seconds until the next try, while a module is imported


class _Handler:
    """The handler of SIGINT: it ends the process, or raises KeyboardInterrupt while `raising`."""

    def __init__(self, program: str | None) -> None:
        self.program = program
        self.raising = self.interrupted = self.raised = False
        self.unreported = _thread.allocate_lock()
        self.stderr: int | None = None  # a copy: `silence_stderr` redirects the original for a while
        with contextlib.suppress(OSError):
            self.stderr = os.dup(2)

    def __call__(self, _: int, frame: FrameType | None) -> None:
        self.interrupted = True
        if not self.raising:
            self.exit()
        if _is_importing(frame):  # an extension module may crash at an exception: try again a little later
            signal.signal(signal.SIGALRM, self)
            signal.setitimer(signal.ITIMER_REAL, RETRY)
        elif not self.raised:  # a second exception would interrupt the cleaning up
            self.raised = True
            raise KeyboardInterrupt

    def exit(self) -> None:
        if self.claim_report() and self.program is not None and self.stderr is not None:
            with contextlib.suppress(OSError):  # not `print`, which the signal may have interrupted
                os.write(self.stderr, f"{self.program}: {MESSAGE}\n".encode())
        exit_process()

    def claim_report(self) -> bool:
        """Whether the caller is the first to ask, and so prints the line: the main thread or `watch`."""
        return self.unreported.acquire(blocking=False)

    def watch(self, signals: int) -> None:
        """In a thread: end the process `DEADLINE` after SIGINT, also while foreign code runs.

        Args:
            signals: A pipe that receives the number of each signal, written by Python's C handler.
        """
        while (number := os.read(signals, 1)) and number[0] != signal.SIGINT:
            pass
        if number:
            time.sleep(DEADLINE)
            self.exit()


_handler: _Handler | None = None
_cleanups: list[Callable[[], object]] = []


def exit_on_interrupt(program: str | None) -> None:
    """End this process at SIGINT from now on, with one line and exit code 130.

    Call it at the start of a command, before slow imports. SIGINT stays ignored if it is ignored already
    (`nohup`).

    Args:
        program: The name in the line. None prints no line: for a child process, whose parent prints one.
    """
    global _handler
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        _handler = _Handler(program)
        signal.signal(signal.SIGINT, _handler)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGINT raise KeyboardInterrupt inside, end the process soon after, and ignore SIGINT afterwards.

    Does nothing in a process that did not call `exit_on_interrupt`.

    Yields:
        Nothing.

    Raises:
        KeyboardInterrupt: SIGINT was received, even if the code inside raised another exception then.
    """
    if _handler is None or _handler.raising:
        yield
        return
    _start_watching(_handler)
    _handler.raising = True
    try:
        yield
    except Exception:
        if _handler.interrupted:
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextlib.contextmanager
def cleanup_at_exit(cleanup: Callable[[], object]) -> Iterator[None]:
    """Call a function if SIGINT ends the process: without unwinding the block, or after cutting it short.

    The first happens `DEADLINE` after SIGINT, for example during a slow import. The second happens if
    KeyboardInterrupt is raised while the block is entered, or while it cleans up.

    Args:
        cleanup: Removes what the block must not leave behind. The block does the same when it is unwound, so
            this must be harmless when it is called again.

    Yields:
        Nothing.
    """
    _cleanups.append(cleanup)
    try:
        yield
    except KeyboardInterrupt:
        raise  # it may have cut short the block's own cleaning up: `exit_process` does it again
    except BaseException:
        _cleanups.remove(cleanup)
        raise
    _cleanups.remove(cleanup)


def clean_up() -> None:
    """Call the functions of all blocks of `cleanup_at_exit` that SIGINT has cut short, the last one first."""
    while _cleanups:
        with contextlib.suppress(Exception):
            _cleanups.pop()()


def survive_interrupts() -> None:
    """From now on SIGINT only raises KeyboardInterrupt, for a command that catches it and goes on."""
    if _handler is not None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def claim_report() -> bool:
    """Decide who prints the line, and restore stderr for the command.

    The signal may have come while `silence_stderr` had redirected descriptor 2.

    Returns:
        Whether the command is to print its own line.
    """
    if _handler is None:
        return True
    if not _handler.claim_report():
        return False
    if _handler.stderr is not None:
        os.dup2(_handler.stderr, 2)
    return True


def program() -> str | None:
    """Return the name of this process's command.

    Returns:
        The name that was given to `exit_on_interrupt`; None without it.
    """
    return _handler.program if _handler is not None else None


def exit_process() -> None:
    """Clean up what is left, and end this process at once, if it called `exit_on_interrupt`.

    Python's own exit may take seconds to free libraries. It may also end by SIGINT instead of an exit code:
    it remembers a KeyboardInterrupt that passed through an extension module.
    """
    if _handler is not None:
        clean_up()
        os._exit(INTERRUPTED)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def _start_watching(handler: _Handler) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    _thread.start_new_thread(handler.watch, (reader,))
    sys.unraisablehook = _report_unraisable
    sys.excepthook = _report_exception


def _report_unraisable(unraisable: Any) -> None:
    """Hide a KeyboardInterrupt in a destructor, which Python drops: the deadline still ends the process."""
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)


def _report_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Hide a KeyboardInterrupt that an extension module prints while it is imported."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
