"""Where models come from and go to: stdin, stdout and files.

Input is mapped, not read: constants are views into the file's pages until someone needs their numbers.
A pipe cannot be mapped, so what comes through one is moved, by the kernel, into an unnamed temporary file
that can. Output appears under its name only when it is complete.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from o2o.errors import UsageError


def _map(file: BinaryIO) -> memoryview:
    if os.fstat(file.fileno()).st_size == 0:
        return memoryview(b"")
    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


@dataclass(frozen=True)
class Source:
    """The bytes of a model and what to call it in a message."""

    name: str
    data: memoryview


def open_source(file: str) -> Source:
    """The model in `file`, `-` for stdin. Raises OSError, UsageError."""
    return Source("<stdin>", read_stdin()) if file == "-" else Source(file, read_file(file))


def read_file(path: str | os.PathLike[str]) -> memoryview:
    """The bytes of the file at `path`, mapped. Pipes and devices are spooled. Raises OSError."""
    with open(path, "rb") as file:
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return _map(file)
        return _spool(file)


def read_stdin() -> memoryview:
    """The bytes on stdin: mapped when it is a file (`< model.circle`), spooled when it is a pipe."""
    stream = None if sys.stdin is None else sys.stdin.buffer  # None when it was closed (`<&-`)
    if stream is None or stream.isatty():
        raise UsageError("no input: give a file name, or pipe a model in (`< model.circle`)")
    if stat.S_ISREG(os.fstat(stream.fileno()).st_mode) and os.lseek(stream.fileno(), 0, os.SEEK_CUR) == 0:
        return _map(stream)
    return _spool(stream)


def _spool(stream: BinaryIO) -> memoryview:
    with tempfile.TemporaryFile() as spool:
        _pour(stream, spool)
        return _map(spool)


def _pour(source: BinaryIO, sink: BinaryIO) -> None:
    """Everything that `source` has, into the empty file `sink`: pages move in the kernel where they can."""
    if hasattr(os, "splice") and stat.S_ISFIFO(os.fstat(source.fileno()).st_mode):
        try:
            while os.splice(source.fileno(), sink.fileno(), 1 << 30):
                pass
            return
        except OSError as error:
            if error.errno != errno.EINVAL:  # a file system that cannot: before the first byte
                raise
    shutil.copyfileobj(source, sink, 1 << 20)
    sink.flush()


@contextlib.contextmanager
def open_output(path: str | os.PathLike[str] | None) -> Iterator[BinaryIO]:
    """A binary sink: stdout for None, else a file that replaces `path` only when the block succeeds.

    Raises UsageError when stdout is a terminal, OSError for what the file system refuses. On any error the
    old file, if there was one, is as it was, and nothing is left beside it.
    """
    if path is None:
        if sys.stdout is None:
            raise UsageError("stdout is closed: redirect it (`> model.circle`) or name a file with -o")
        if sys.stdout.isatty():
            raise UsageError("stdout is a terminal: redirect it (`> model.circle`) or name a file with -o")
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    target = Path(path)
    if target.exists() and not target.is_file():  # a device or a named pipe: there is nothing to replace
        with open(target, "wb") as sink:
            yield sink
        return
    target = target.resolve()  # write through a symbolic link, not over it
    umask = os.umask(0)
    os.umask(umask)
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        error.filename = os.fspath(path)  # not the temporary name
        raise
    try:
        with os.fdopen(descriptor, "wb") as sink:
            yield sink
            sink.flush()
            os.fchmod(sink.fileno(), 0o666 & ~umask)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
