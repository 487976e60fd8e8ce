"""Silence for libraries that write to the terminal and offer no switch."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator


def silence() -> None:
    """Drop what anything in this process writes to stderr from now on; for use at its end."""
    with contextlib.suppress(OSError), open(os.devnull, "wb") as null:
        _flush()
        os.dup2(null.fileno(), 2)


@contextlib.contextmanager
def quiet(active: bool = True) -> Iterator[None]:
    """Drop what anything in this process writes to stderr (the file descriptor) inside the block."""
    if not active:
        yield
        return
    _flush()
    try:
        kept = os.dup(2)
    except OSError:  # stderr is closed: it is quiet already
        yield
        return
    try:
        with open(os.devnull, "wb") as null:
            os.dup2(null.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _flush() -> None:
    if sys.stderr is not None:  # as it is where it was closed from the beginning
        sys.stderr.flush()


@contextlib.contextmanager
def no_warnings() -> Iterator[None]:
    """No warnings, from Python or from loggers, in the meantime."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
