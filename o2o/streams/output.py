"""Output files, which appear under their names only when they are complete."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

from o2o.cli import interrupt
from o2o.errors import O2oError, UsageError
from o2o.streams.source import enlarge_pipe

DESCRIPTORS = "/proc/self/fd"  # the process's open files; an unnamed file is linked from here


@contextlib.contextmanager
def open_output(path: str | os.PathLike[str] | None, size: int = 0) -> Iterator[BinaryIO]:
    """Open a file that replaces `path` only when the block succeeds, or stdout.

    If the block fails or the process is killed, an old file stays unchanged and no temporary file is left.

    Args:
        path: The file, device or named pipe; None for stdout.
        size: The number of bytes that will be written; 0 if unknown. A disk without room for them is reported
            before the first byte.

    Yields:
        A binary file.

    Raises:
        UsageError: stdout is closed or a terminal.
        O2oError: The disk has less than `size` bytes free.
        OSError: The file system refuses the file.
    """
    if path is None:
        if sys.stdout is None:
            raise UsageError("stdout is closed: redirect it (`> model.circle`) or name a file with -o")
        if sys.stdout.isatty():
            raise UsageError("stdout is a terminal: redirect it (`> model.circle`) or name a file with -o")
        with contextlib.suppress(OSError):  # stdout need not have a descriptor
            enlarge_pipe(sys.stdout.fileno())
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    target = Path(path)
    if target.exists() and not target.is_file():  # a device or a named pipe, which cannot be replaced
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
    """Let system errors name the requested file instead of a temporary one, or of no file.

    Errors of other files, such as one that is read within the block, stay as they are.
    """
    try:
        yield
    except OSError as error:
        target = Path(path).resolve()
        named = Path(str(error.filename or target.parent))
        temporary = named.parent == target.parent and named.name.startswith(_temporary_prefix(target))
        if temporary or named == target.parent:
            error.filename, error.filename2 = os.fspath(path), None
        raise


def _temporary_prefix(target: Path) -> str:
    return f".{target.name}."


def _check_space(target: Path, size: int) -> None:
    free = os.statvfs(target.parent)
    available = free.f_bavail * free.f_frsize
    if size > available and free.f_blocks:  # a file system of unknown size reports no blocks
        raise O2oError(
            f"{target.name} takes {size:,} bytes, {target.parent} has {available:,} free: make room, or "
            "write elsewhere"
        )


@contextlib.contextmanager
def _unnamed(target: Path) -> Iterator[BinaryIO]:
    """A file without a name, which becomes `target` when the block succeeds.

    On file systems without unnamed files it has a temporary name.
    """
    descriptor = _open_unnamed(target.parent)
    if descriptor is None:
        with _temporary(target) as sink:
            yield sink
        return
    with os.fdopen(descriptor, "wb") as sink:
        yield sink
        sink.flush()
        # A link cannot replace a file: link a temporary name first, then rename it.
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
    """An unnamed file; None if the system cannot create one, or cannot name it later."""
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
    name = Path(tempfile.mktemp(prefix=_temporary_prefix(target), dir=target.parent))
    remove = partial(name.unlink, missing_ok=True)
    with interrupt.cleanup_at_exit(remove):
        try:
            with open(name, "xb") as sink:
                yield sink
            os.replace(name, target)
        finally:
            remove()
