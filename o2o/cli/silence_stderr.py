"""Context managers that silence libraries which write to stderr and have no option against it."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator


def silence_stderr_forever() -> None:
    """Drop all output to stderr from now on, for the end of a process."""
    with contextlib.suppress(OSError), open(os.devnull, "wb") as null:
        _flush()
        os.dup2(null.fileno(), 2)


@contextlib.contextmanager
def silenced_stderr(active: bool = True) -> Iterator[None]:
    """Drop all output to stderr inside the block, also the output of C libraries.

    Several threads may be in such blocks. Output of other threads is dropped as well.

    Args:
        active: False to drop nothing.

    Yields:
        Nothing.
    """
    if not active:
        yield
        return
    _stderr.silence()
    try:
        yield
    finally:
        _stderr.end_silence()


@contextlib.contextmanager
def captured_stderr(lines: list[str]) -> Iterator[None]:
    """Collect the output to stderr inside the block, also the output of C libraries.

    Other threads wait before they enter such a block, or `silenced_stderr`. So the block must not import
    modules, which may do so.

    Args:
        lines: Receives the lines at the end of the block.

    Yields:
        Nothing.
    """
    import tempfile

    with _stderr.alone(), tempfile.TemporaryFile() as captured:
        if not _stderr.redirect(captured.fileno()):
            yield
            return
        try:
            yield
        finally:
            _stderr.restore()
            captured.seek(0)
            lines += captured.read().decode(errors="replace").split("\n")[:-1]


class _Stderr:
    """The file descriptor of stderr. Silent blocks share one redirection, captures are alone."""

    def __init__(self) -> None:
        self.original: int | None = None  # a copy of the descriptor while it is redirected
        self.after_fork_in_child()

    def after_fork_in_child(self) -> None:
        """End the blocks of other threads, which do not exist in the child."""
        self.changed = threading.Condition()
        self.silent_blocks = 0
        self.capturing = False
        self.restore()

    def silence(self) -> None:
        with self.changed:
            self.changed.wait_for(lambda: not self.capturing)
            self.silent_blocks += 1
            if self.silent_blocks == 1:
                with open(os.devnull, "wb") as null:
                    self.redirect(null.fileno())

    def end_silence(self) -> None:
        with self.changed:
            self.silent_blocks = max(0, self.silent_blocks - 1)
            if self.silent_blocks == 0:
                self.restore()
                self.changed.notify_all()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other thread redirects stderr, and keep them waiting inside the block."""
        with self.changed:
            self.changed.wait_for(lambda: not self.capturing and self.silent_blocks == 0)
            self.capturing = True
        try:
            yield
        finally:
            with self.changed:
                self.capturing = False
                self.changed.notify_all()

    def redirect(self, descriptor: int) -> bool:
        """Return whether stderr is open."""
        _flush()
        try:
            self.original = os.dup(2)
        except OSError:
            return False
        os.dup2(descriptor, 2)
        return True

    def restore(self) -> None:
        if self.original is not None:
            original, self.original = self.original, None
            os.dup2(original, 2)
            os.close(original)


def _flush() -> None:
    if sys.stderr is not None:  # it is None if the process started without one
        sys.stderr.flush()


@contextlib.contextmanager
def suppressed_warnings() -> Iterator[None]:
    """Drop warnings of Python and of loggers inside the block.

    Yields:
        Nothing.
    """
    import logging
    import warnings

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


_stderr = _Stderr()
os.register_at_fork(after_in_child=_stderr.after_fork_in_child)
