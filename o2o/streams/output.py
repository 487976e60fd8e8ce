"""What is written appears under its name only when it is complete."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from o2o.errors import O2oError, UsageError
from o2o.streams.source import widen

DESCRIPTORS = "/proc/self/fd"  # this process's, by number; a file without a name gets one from here


@contextlib.contextmanager
def open_output(path: str | os.PathLike[str] | None, size: int = 0) -> Iterator[BinaryIO]:
    """A binary sink: stdout for None, else a file that replaces `path` only when the block succeeds.

    size: how many bytes will be written, if that is known: a disk that has no room for them is told before
    the first. Raises UsageError when stdout is a terminal, O2oError for a disk that is too full, OSError for
    what the file system refuses. On any error, and when the process is killed, the old file, if there was
    one, is as it was, and nothing is left beside it.
    """
    if path is None:
        if sys.stdout is None:
            raise UsageError("stdout is closed: redirect it (`> model.circle`) or name a file with -o")
        if sys.stdout.isatty():
            raise UsageError("stdout is a terminal: redirect it (`> model.circle`) or name a file with -o")
        with contextlib.suppress(OSError):  # stdout need not have a descriptor
            widen(sys.stdout.fileno())
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    target = Path(path)
    if target.exists() and not target.is_file():  # a device or a named pipe: there is nothing to replace
        with _named(path), open(target, "wb") as sink:
            yield sink
        return
    target = target.resolve()  # write through a symbolic link, not over it
    with _named(path):
        _check_space(target, size)
        with _unnamed(target) as sink:
            yield sink


@contextlib.contextmanager
def _named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Let the system's errors tell the file that was asked for, and not a temporary one or none; but another
    that someone cannot read within the block is told as it is."""
    try:
        yield
    except OSError as error:
        target = Path(path).resolve()
        told = Path(str(error.filename or target.parent))
        temporary = told.parent == target.parent and told.name.startswith(_temporary_prefix(target))
        if temporary or told == target.parent:
            error.filename, error.filename2 = os.fspath(path), None
        raise


def _temporary_prefix(target: Path) -> str:
    return f".{target.name}."


def _check_space(target: Path, size: int) -> None:
    free = os.statvfs(target.parent)
    there = free.f_bavail * free.f_frsize
    if size > there and free.f_blocks:  # a file system that says nothing of its size has none
        raise O2oError(
            f"{target.name} takes {size:,} bytes, {target.parent} has {there:,} free: make room, or write "
            "elsewhere"
        )


@contextlib.contextmanager
def _unnamed(target: Path) -> Iterator[BinaryIO]:
    """A file without a name, which becomes `target` when the block succeeds; with a temporary name where
    the file system knows no others."""
    descriptor = _open_unnamed(target.parent)
    if descriptor is None:
        with _temporary(target) as sink:
            yield sink
        return
    with os.fdopen(descriptor, "wb") as sink:
        yield sink
        sink.flush()
        # A link cannot replace a file: it gets a name beside it first.
        name = Path(tempfile.mktemp(prefix=_temporary_prefix(target), dir=target.parent))
        descriptors = os.open(DESCRIPTORS, os.O_RDONLY)
        try:
            os.link(str(sink.fileno()), name, src_dir_fd=descriptors, follow_symlinks=True)
            os.replace(name, target)
        except BaseException:
            name.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptors)


def _open_unnamed(folder: Path) -> int | None:
    """None where there is no such thing, or no way to give it a name later."""
    if not hasattr(os, "O_TMPFILE") or not os.path.isdir(DESCRIPTORS):
        return None
    try:
        return os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o666)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT):
            return None
        raise


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[BinaryIO]:
    umask = os.umask(0)
    os.umask(umask)
    descriptor, name = tempfile.mkstemp(prefix=_temporary_prefix(target), dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as sink:
            yield sink
            sink.flush()
            os.fchmod(sink.fileno(), 0o666 & ~umask)
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
