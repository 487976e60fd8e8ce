"""Context managers that silence libraries which write to stderr and have no option against it."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator


def silence_stderr_forever() -> None:
    """Drop all output to stderr from now on, for the end of a process."""
    with contextlib.suppress(OSError), open(os.devnull, "wb") as null:
        _flush()
        os.dup2(null.fileno(), 2)


@contextlib.contextmanager
def silenced_stderr(active: bool = True) -> Iterator[None]:
    """Drop all output to stderr inside the block, also the output of C libraries.

    Args:
        active: False to drop nothing.

    Yields:
        Nothing.
    """
    if not active:
        yield
        return
    _flush()
    try:
        stderr = os.dup(2)
    except OSError:  # stderr is closed
        yield
        return
    try:
        with open(os.devnull, "wb") as null:
            os.dup2(null.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _flush() -> None:
    if sys.stderr is not None:  # it is None if the process started without one
        sys.stderr.flush()


@contextlib.contextmanager
def suppressed_warnings() -> Iterator[None]:
    """Drop warnings of Python and of loggers inside the block.

    Yields:
        Nothing.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
