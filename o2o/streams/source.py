"""Sources of model files: a file, a pipe, bytes in memory.

The header of a file, which holds the graph, is read at once. The data behind it is mapped when its numbers
are needed. Data that is only written again is copied by the kernel and never enters this process. So a filter
needs memory for the header only.

A pipe can be read only once. Data that only needs copying stays in the pipe and is passed on as it arrives.
Otherwise the whole input is first moved into an unnamed temporary file (it is spooled).
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
from pathlib import Path
from typing import BinaryIO

import numpy as np

from o2o.errors import ModelError, O2oError, UsageError
from o2o.streams.copying import CHUNK, EndsEarly, copy
from o2o.streams.framing import AT, LENGTH, Frame, parse_frame

PIPE_SIZE = 1 << 20  # bytes; the maximum for an unprivileged process
SMALL = 16 << 20  # bytes of a model that is read from a pipe at once


class Source:
    """Base of the inputs that a model is read from.

    Attributes:
        name: The name of the input in messages.
        header: The first bytes, which hold at least the graph; all bytes of a file without a frame.
    """

    name: str
    header: memoryview
    origin: int = 0
    """The position of the first byte in the file that the system knows: not 0 for a part of a file."""
    folder: Path | None = None
    """The folder of the file; None for stdin and for bytes in memory."""

    def view(self, start: int, size: int) -> np.ndarray:
        """Return bytes of the file as an array that is mapped on demand.

        Args:
            start: The first byte.
            size: The number of bytes.

        Returns:
            The bytes, uint8 [size].

        Raises:
            ModelError: The file is shorter.
        """
        raise NotImplementedError

    def chunks(self, start: int, size: int, chunk: int) -> Iterator[bytes]:
        """Read bytes of the file in chunks, without mapping them, which would add to the process's memory.

        Args:
            start: The first byte.
            size: The number of bytes.
            chunk: The number of bytes to read at a time.

        Yields:
            The bytes in order.

        Raises:
            ModelError: The file is shorter.
        """
        raise NotImplementedError

    def release(self, start: int, size: int) -> None:
        """Take mapped bytes out of the process's memory. They are read again when they are used.

        Args:
            start: The first byte.
            size: The number of bytes.
        """

    def copy(self, start: int, size: int, sink: BinaryIO) -> None:
        """Append bytes of the file to a sink.

        Args:
            start: The first byte.
            size: The number of bytes.
            sink: A binary file.

        Raises:
            ModelError: The file is shorter.
            OSError: The sink cannot be written.
        """
        raise NotImplementedError

    @property
    def size(self) -> int | None:
        """The length of the file in bytes; None if unknown."""
        return None

    @property
    def unframed(self) -> memoryview | None:
        """All bytes of a file that may end in an archive; None for a file that ends where its frame says."""
        return None

    def spool(self) -> None:
        """Make all bytes available in any order and more than once."""

    def announce_copies(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Announce that only `copy` will be called from now on.

        Args:
            ranges: The start and size of each copy, in the order of the calls.
        """

    def finish(self) -> None:
        """Announce that the source will not be used again.

        Raises:
            ModelError: The input is shorter or longer than its frame says.
        """


class MemorySource(Source):
    """Bytes in memory."""

    def __init__(self, data: bytes | bytearray | memoryview, name: str = "<bytes>") -> None:
        self.name, self.header = name, memoryview(data)

    @property
    def size(self) -> int:
        return len(self.header)

    @property
    def unframed(self) -> memoryview | None:
        frame = parse_frame(self.header)
        return None if frame is not None and frame.file == len(self.header) else self.header

    def view(self, start: int, size: int) -> np.ndarray:
        _check_end(self, start + size, len(self.header))
        return np.frombuffer(self.header, np.uint8, size, start)

    def chunks(self, start: int, size: int, chunk: int) -> Iterator[bytes]:
        yield self.view(start, size).tobytes()

    def copy(self, start: int, size: int, sink: BinaryIO) -> None:
        sink.write(self.view(start, size).data)


class FileSource(Source):
    """A regular file. It may be renamed, replaced or unlinked while it is read, but not modified."""

    def __init__(self, descriptor: int, name: str) -> None:
        """Open the file.

        Args:
            descriptor: An open file descriptor, which is duplicated.
            name: The name of the input in messages.

        Raises:
            ModelError: The file is shorter than its frame says.
        """
        self.name = name
        self._file = open(os.dup(descriptor), "rb", buffering=0)  # noqa: SIM115 - lives as long as this
        self._size = os.fstat(descriptor).st_size
        self._map: mmap.mmap | None = None
        frame = parse_frame(os.pread(descriptor, AT + LENGTH, 0))
        self._framed = frame is not None and frame.file == self._size
        if frame is None:
            self.header = memoryview(self._mapped())
        else:
            _check_end(self, frame.file, self._size)
            self.header = memoryview(os.pread(descriptor, frame.header, 0))

    @property
    def size(self) -> int:
        return self._size

    @property
    def unframed(self) -> memoryview | None:
        return None if self._framed else memoryview(self._mapped())

    def _mapped(self) -> mmap.mmap | bytes:
        if self._map is None and self._size:
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._map if self._map is not None else b""

    def view(self, start: int, size: int) -> np.ndarray:
        _check_end(self, start + size, self._size)
        return np.frombuffer(self._mapped(), np.uint8, size, start)

    def chunks(self, start: int, size: int, chunk: int) -> Iterator[bytes]:
        _check_end(self, start + size, self._size)
        for place in range(start, start + size, chunk):
            yield os.pread(self._file.fileno(), min(chunk, start + size - place), place)

    def release(self, start: int, size: int) -> None:
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            first = start - start % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_DONTNEED, first, start + size - first)

    def copy(self, start: int, size: int, sink: BinaryIO) -> None:
        _check_end(self, start + size, self._size)
        try:
            copy(self._file.fileno(), start, size, sink)
        except EndsEarly:
            raise ModelError(f"{self.name}: the file became shorter while it was read") from None


class RangeSource(Source):
    """A part of another source: a model within a file."""

    def __init__(self, source: Source, start: int, size: int) -> None:
        """Describe the part.

        Args:
            source: The other source, whose bytes are all available.
            start: The first byte.
            size: The number of bytes.

        Raises:
            ModelError: The source is shorter, or the model in it is longer than the part.
        """
        self.name, self.origin = source.name, source.origin + start
        self._source, self._start, self._size = source, start, size
        whole = source.view(start, size).data
        frame = parse_frame(whole[: AT + LENGTH])
        if frame is not None:
            _check_end(self, frame.file, size)
        self._framed = frame is not None and frame.file == size
        self.header = whole if frame is None else whole[: frame.header]

    @property
    def size(self) -> int:
        return self._size

    @property
    def unframed(self) -> memoryview | None:
        return None if self._framed else self._source.view(self._start, self._size).data

    def view(self, start: int, size: int) -> np.ndarray:
        _check_end(self, start + size, self._size)
        return self._source.view(self._start + start, size)

    def chunks(self, start: int, size: int, chunk: int) -> Iterator[bytes]:
        _check_end(self, start + size, self._size)
        yield from self._source.chunks(self._start + start, size, chunk)

    def release(self, start: int, size: int) -> None:
        self._source.release(self._start + start, size)

    def copy(self, start: int, size: int, sink: BinaryIO) -> None:
        _check_end(self, start + size, self._size)
        self._source.copy(self._start + start, size, sink)


class PipeSource(Source):
    """A pipe, or the rest of a file whose beginning was already read."""

    def __init__(self, descriptor: int, name: str, small: int = 0) -> None:
        """Read the header of a file from a pipe.

        Args:
            descriptor: An open file descriptor, which is duplicated.
            name: The name of the input in messages.
            small: Read the whole file if it has at most this many bytes, so that the command upstream can
                end.

        Raises:
            ModelError: The pipe ends within these bytes, or goes on for long behind the model.
        """
        self.name = name
        self._file = open(os.dup(descriptor), "rb", buffering=0)  # noqa: SIM115 - lives as long as this
        self._pipe = self._file.fileno()
        enlarge_pipe(self._pipe)
        self._spool: Source | None = None
        start = self._read(AT + LENGTH)
        self._frame: Frame | None = parse_frame(start)
        if self._frame is None:
            self._spool = self._spool_all(start)
            self.header = self._spool.header
            self._position = len(self.header)
            return
        length = self._frame.file if self._frame.file <= small else self._frame.header
        self.header = memoryview(start + self._read(length - len(start)))
        self._position = len(self.header)
        _check_end(self, length, self._position)
        if length == self._frame.file:
            limit = max(small, CHUNK)
            if rest := self._read(limit + 1):  # perhaps an archive that another program has appended
                self.header = memoryview(bytes(self.header) + rest)
                self._position = len(self.header)
            if len(rest) > limit:
                raise _continues(self, len(rest))
            self._spool = MemorySource(self.header, name)

    @property
    def size(self) -> int | None:
        return self._frame.file if self._frame is not None else self._spooled().size

    @property
    def unframed(self) -> memoryview | None:
        return self._spool.unframed if self._spool is not None else None

    def _read(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count and (chunk := os.read(self._pipe, min(count - len(data), CHUNK))):
            data += chunk
        return bytes(data)

    def _spool_all(self, start: bytes | memoryview) -> FileSource:
        """Move the whole input into an unnamed file: `start`, then the rest of the pipe."""
        try:
            with tempfile.TemporaryFile() as spool:
                spool.write(start)
                copy(self._pipe, None, None, spool)
                spool.flush()
                return FileSource(spool.fileno(), self.name)
        except OSError as error:
            raise O2oError(
                f"{self.name} must be stored temporarily, but {tempfile.gettempdir()} has no room "
                f"({error.strerror}): read a file, or set TMPDIR to another folder"
            ) from error

    def _spooled(self) -> Source:
        if self._spool is None:
            if self._position != len(self.header):
                raise self._gone()
            self._spool = self._spool_all(self.header)
        return self._spool

    def spool(self) -> None:
        self._spooled()

    def view(self, start: int, size: int) -> np.ndarray:
        return self._spooled().view(start, size)

    def chunks(self, start: int, size: int, chunk: int) -> Iterator[bytes]:
        return self._spooled().chunks(start, size, chunk)

    def announce_copies(self, ranges: Sequence[tuple[int, int]]) -> None:
        previous = [0, *(start + size for start, size in ranges)]
        in_order = all(start >= end for (start, _), end in zip(ranges, previous, strict=False))
        if not in_order or any(start < len(self.header) for start, _ in ranges):
            self.spool()

    def copy(self, start: int, size: int, sink: BinaryIO) -> None:
        if self._spool is not None:
            return self._spool.copy(start, size, sink)
        if start < self._position:
            raise self._gone()
        self._skip(start - self._position)
        self._move(size, sink)

    def _gone(self) -> ModelError:
        return ModelError(
            f"{self.name}: the data was passed on and cannot be read again: read a file instead of a pipe"
        )

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
        """Read the rest of the pipe, so that the command upstream does not fail; check the length."""
        if self._spool is not None:  # all of it was read, and its length checked
            return
        self._skip(None)
        if self._frame is not None:
            _check_end(self, self._frame.file, self._position)
            if (more := self._position - self._frame.file) > 0:
                raise _continues(self, more)


def _check_end(source: Source, needed: int, available: int) -> None:
    if needed > available:
        raise _cut_short(source, f": {available:,} bytes of {needed:,}")


def _cut_short(source: Source, detail: str = "") -> ModelError:
    return ModelError(f"{source.name}: truncated{detail} (was the command that wrote it interrupted?)")


def _continues(source: Source, more: int) -> ModelError:
    return ModelError(
        f"{source.name}: at least {more:,} bytes follow the model, perhaps an archive: read the file instead "
        "of a pipe"
    )


def enlarge_pipe(descriptor: int) -> None:
    """Enlarge the buffer of a pipe, so that its two processes switch less often.

    Args:
        descriptor: Any file descriptor. It is ignored if it is not a pipe, and so are errors of the system.
    """
    if stat.S_ISFIFO(os.fstat(descriptor).st_mode) and hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):  # the user's limit for pipes is reached
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_SIZE)


def open_source(file: str) -> Source:
    """Open a command's input.

    Args:
        file: A file, or `-` for stdin.

    Returns:
        The source.

    Raises:
        UsageError: stdin is closed or a terminal.
        ModelError: The input is truncated.
        OSError: The file cannot be read.
    """
    return _open_stdin() if file == "-" else open_file(file)


def open_file(path: str | os.PathLike[str]) -> Source:
    """Open a file, named pipe or device.

    Args:
        path: Its path.

    Returns:
        The source.

    Raises:
        ModelError: The input is truncated.
        OSError: The file cannot be read.
    """
    with open(path, "rb", buffering=0) as file:
        regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        source = _opened(file.fileno(), regular, os.fspath(path))
        source.folder = Path(path).parent
        return source


def _open_stdin() -> Source:
    stream = sys.stdin  # None if it is closed (`<&-`)
    if stream is None or stream.isatty():
        raise UsageError("no input: give a file name, or pipe a model in (`< model.circle`)")
    descriptor = stream.fileno()
    regular = stat.S_ISREG(os.fstat(descriptor).st_mode) and os.lseek(descriptor, 0, os.SEEK_CUR) == 0
    return _opened(descriptor, regular, "<stdin>")


def _opened(descriptor: int, regular: bool, name: str) -> Source:
    return FileSource(descriptor, name) if regular else PipeSource(descriptor, name, SMALL)
