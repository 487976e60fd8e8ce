"""What a model is read from: a file, a pipe, bytes in memory.

A model's head, its graph, is read at once; its data only when someone needs their numbers (they are mapped)
or when they are written again (they are copied by the kernel and never enter this process). So a filter's
memory is that of the head.

A pipe can be read once. As long as nobody needs the data of one, they stay in it, and are passed on as they
come. Otherwise everything is moved into an unnamed temporary file first.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np

from o2o.errors import ModelError, O2oError, UsageError
from o2o.streams.copying import CHUNK, EndsEarly, copy
from o2o.streams.framing import AT, LENGTH, Frame, parse_frame

PIPE_SIZE = 1 << 20  # bytes; what an unprivileged process may ask for
SMALL = 16 << 20  # bytes of a model that is not worth being passed on


class Source:
    """The bytes of a model. `name` is what to call it in a message, `head` are its first bytes: at least
    the graph, and all of them for a file that does not say where its head ends."""

    name: str
    head: memoryview

    def view(self, start: int, size: int) -> np.ndarray:
        """Bytes of the model, uint8 [size]: mapped, not read. Raises ModelError when it ends before."""
        raise NotImplementedError

    def pieces(self, start: int, size: int, at_once: int) -> Iterator[bytes]:
        """The same bytes, `at_once` at a time: without mapping what would then count as this process's."""
        raise NotImplementedError

    def copy(self, start: int, size: int, sink: BinaryIO) -> None:
        """Append bytes of the model to `sink`. Raises ModelError when it ends before, OSError."""
        raise NotImplementedError

    @property
    def size(self) -> int | None:
        """All bytes of the model, as far as that is known."""
        return None

    def keep(self) -> None:
        """See to it that all bytes can be had in any order and more than once."""

    def pass_on(self, ranges: Sequence[tuple[int, int]]) -> None:
        """From now on nothing is asked for but `copy` of these (start, size), once each, in this order."""

    def finish(self) -> None:
        """Nothing more will be asked for."""


class MemorySource(Source):
    """Bytes that are there."""

    def __init__(self, data: bytes | bytearray | memoryview, name: str = "<bytes>") -> None:
        self.name, self.head = name, memoryview(data)

    @property
    def size(self) -> int:
        return len(self.head)

    def view(self, start: int, size: int) -> np.ndarray:
        _check_end(self, start + size, len(self.head))
        return np.frombuffer(self.head, np.uint8, size, start)

    def pieces(self, start: int, size: int, at_once: int) -> Iterator[bytes]:
        yield self.view(start, size).tobytes()

    def copy(self, start: int, size: int, sink: BinaryIO) -> None:
        sink.write(self.view(start, size).data)


class FileSource(Source):
    """A regular file. It may lose its name in the meantime, or be replaced, but not be changed."""

    def __init__(self, descriptor: int, name: str) -> None:
        """Takes a copy of `descriptor`. Raises ModelError for a file that is cut short."""
        self.name = name
        self._file = open(os.dup(descriptor), "rb", buffering=0)  # noqa: SIM115 - lives as long as this
        self._size = os.fstat(descriptor).st_size
        self._map: mmap.mmap | None = None
        frame = parse_frame(os.pread(descriptor, AT + LENGTH, 0))
        if frame is None:
            self.head = memoryview(self._mapped())
        else:
            _check_end(self, frame.file, self._size)
            self.head = memoryview(os.pread(descriptor, frame.head, 0))

    @property
    def size(self) -> int:
        return self._size

    def _mapped(self) -> mmap.mmap | bytes:
        if self._map is None and self._size:
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._map if self._map is not None else b""

    def view(self, start: int, size: int) -> np.ndarray:
        _check_end(self, start + size, self._size)
        return np.frombuffer(self._mapped(), np.uint8, size, start)

    def pieces(self, start: int, size: int, at_once: int) -> Iterator[bytes]:
        _check_end(self, start + size, self._size)
        for place in range(start, start + size, at_once):
            yield os.pread(self._file.fileno(), min(at_once, start + size - place), place)

    def copy(self, start: int, size: int, sink: BinaryIO) -> None:
        _check_end(self, start + size, self._size)
        try:
            copy(self._file.fileno(), start, size, sink)
        except EndsEarly:
            raise ModelError(f"{self.name}: the file became shorter while it was read") from None


class PipeSource(Source):
    """What comes through a pipe (or stands in a file behind what was read of it before)."""

    def __init__(self, descriptor: int, name: str, at_once: int = 0) -> None:
        """Reads the head, and all of a model of at most `at_once` bytes, so that the command before can end.

        Raises ModelError when the pipe ends within that.
        """
        self.name = name
        self._file = open(os.dup(descriptor), "rb", buffering=0)  # noqa: SIM115 - lives as long as this
        self._pipe = self._file.fileno()
        widen(self._pipe)
        self._spool: Source | None = None
        start = self._read(AT + LENGTH)
        self._frame: Frame | None = parse_frame(start)
        if self._frame is None:
            self._spool = self._spooled(start)
            self.head = self._spool.head
            self._position = len(self.head)
            return
        wanted = self._frame.file if self._frame.file <= at_once else self._frame.head
        self.head = memoryview(start + self._read(wanted - len(start)))
        self._position = len(self.head)
        _check_end(self, wanted, self._position)
        if wanted == self._frame.file:
            self._spool = MemorySource(self.head, name)

    @property
    def size(self) -> int | None:
        return self._frame.file if self._frame is not None else self._kept().size

    def _read(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count and (piece := os.read(self._pipe, min(count - len(data), CHUNK))):
            data += piece
        return bytes(data)

    def _spooled(self, start: bytes | memoryview) -> FileSource:
        """All of it in an unnamed file: `start`, and what is still in the pipe. Raises O2oError when there is
        no room for it."""
        try:
            with tempfile.TemporaryFile() as spool:
                spool.write(start)
                copy(self._pipe, None, None, spool)
                spool.flush()
                return FileSource(spool.fileno(), self.name)
        except OSError as error:
            raise O2oError(
                f"{self.name}: its numbers are needed, and {tempfile.gettempdir()} cannot take them "
                f"({error.strerror}): name a file instead of a pipe, or a folder with room in TMPDIR"
            ) from error

    def _kept(self) -> Source:
        if self._spool is None:
            if self._position != len(self.head):
                raise self._gone()
            self._spool = self._spooled(self.head)
        return self._spool

    def keep(self) -> None:
        self._kept()

    def view(self, start: int, size: int) -> np.ndarray:
        return self._kept().view(start, size)

    def pieces(self, start: int, size: int, at_once: int) -> Iterator[bytes]:
        return self._kept().pieces(start, size, at_once)

    def pass_on(self, ranges: Sequence[tuple[int, int]]) -> None:
        ends = [0, *(start + size for start, size in ranges)]
        in_order = all(start >= end for (start, _), end in zip(ranges, ends, strict=False))
        if not in_order or any(start < len(self.head) for start, _ in ranges):
            self.keep()

    def copy(self, start: int, size: int, sink: BinaryIO) -> None:
        if self._spool is not None:
            return self._spool.copy(start, size, sink)
        if start < self._position:
            raise self._gone()
        self._skip(start - self._position)
        self._move(size, sink)

    def _gone(self) -> ModelError:
        return ModelError(f"{self.name}: its data went by and cannot be had again: name a file")

    def _skip(self, count: int | None) -> None:
        if count != 0:
            with open(os.devnull, "wb") as nowhere:
                self._move(count, nowhere)

    def _move(self, count: int | None, sink: BinaryIO) -> None:
        try:
            self._position += copy(self._pipe, None, count, sink)
        except EndsEarly:
            raise _cut_short(self) from None

    def finish(self) -> None:
        """Takes what is left, so that whoever writes into the pipe can end in peace. Raises ModelError when
        it ends too early even for what nobody needed."""
        if self._spool is not None:  # all of it was taken, and its end checked, then
            return
        self._skip(None)
        if self._frame is not None:
            _check_end(self, self._frame.file, self._position)


def _check_end(source: Source, needed: int, there: int) -> None:
    if needed > there:
        raise _cut_short(source, f": {there:,} bytes of {needed:,}")


def _cut_short(source: Source, how: str = "") -> ModelError:
    return ModelError(f"{source.name}: truncated{how} (was the command that wrote it interrupted?)")


def widen(descriptor: int) -> None:
    """Let a pipe hold more, so that both ends are woken less often. Not for other files, and no promise."""
    if stat.S_ISFIFO(os.fstat(descriptor).st_mode) and hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):  # the user's pipes may hold no more
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_SIZE)


def open_source(file: str) -> Source:
    """The model in `file`, `-` for stdin. Raises OSError, UsageError, ModelError."""
    return _open_stdin() if file == "-" else open_file(file)


def open_file(path: str | os.PathLike[str]) -> Source:
    """The model in the file, pipe or device at `path`. Raises OSError, ModelError."""
    with open(path, "rb", buffering=0) as file:
        regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        return _opened(file.fileno(), regular, os.fspath(path))


def _open_stdin() -> Source:
    stream = sys.stdin  # None when it was closed (`<&-`)
    if stream is None or stream.isatty():
        raise UsageError("no input: give a file name, or pipe a model in (`< model.circle`)")
    descriptor = stream.fileno()
    regular = stat.S_ISREG(os.fstat(descriptor).st_mode) and os.lseek(descriptor, 0, os.SEEK_CUR) == 0
    return _opened(descriptor, regular, "<stdin>")


def _opened(descriptor: int, regular: bool, name: str) -> Source:
    return FileSource(descriptor, name) if regular else PipeSource(descriptor, name, SMALL)
