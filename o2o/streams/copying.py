"""Bytes from one descriptor to another: moved by the kernel where it can, through memory where it cannot."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from functools import partial
from typing import BinaryIO

AT_ONCE = 1 << 30  # bytes asked of the kernel in one call
CHUNK = 1 << 20  # bytes in memory at a time
_CANNOT = {errno.EINVAL, errno.EXDEV, errno.EBADF, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}


Mover = Callable[[int | None, int], int]  # (start, count) -> moved; 0 at the end


class EndsEarly(Exception):
    """The source had less than was asked for."""


def copy(source: int, start: int | None, count: int | None, sink: BinaryIO) -> int:
    """Append bytes of the descriptor `source` to `sink`; how many.

    start: the first byte, in a file; None goes on where `source` stands, as for a pipe. count: how many
    bytes; None: to the end. Raises EndsEarly, and OSError (disk full, closed pipe) of the sink.
    """
    moved = 0
    through_memory: Mover = partial(_through_memory, source, sink)
    move = _in_kernel(source, start, sink) or through_memory
    while count is None or moved < count:
        size = AT_ONCE if count is None else min(AT_ONCE, count - moved)
        try:
            step = move(None if start is None else start + moved, size)
        except OSError as error:
            # A file system or a kind of file that cannot do this: it says so before it moves anything.
            if error.errno not in _CANNOT or move is through_memory:
                raise
            move = through_memory
            continue
        if step == 0 and move is not through_memory:
            move = through_memory  # some file systems say so in the middle of a file: ask again
            continue
        if step == 0:
            if count is None:
                break
            raise EndsEarly
        moved += step
    return moved


def _in_kernel(source: int, start: int | None, sink: BinaryIO) -> Mover | None:
    """The best for this pair, if there is anything."""
    try:
        sink.flush()
        target = sink.fileno()
    except (OSError, AttributeError):  # no descriptor: bytes in memory
        return None
    from_pipe, to_pipe = (stat.S_ISFIFO(os.fstat(end).st_mode) for end in (source, target))
    to_file = stat.S_ISREG(os.fstat(target).st_mode)
    if hasattr(os, "splice") and (from_pipe or (to_pipe and start is not None)):
        return partial(_splice, source, target)
    if hasattr(os, "copy_file_range") and to_file and start is not None:
        return partial(_copy_file_range, source, target)
    return None


def _splice(source: int, target: int, start: int | None, count: int) -> int:
    return os.splice(source, target, count, offset_src=start)


def _copy_file_range(source: int, target: int, start: int | None, count: int) -> int:
    return os.copy_file_range(source, target, count, offset_src=start)


def _through_memory(source: int, sink: BinaryIO, start: int | None, count: int) -> int:
    size = min(count, CHUNK)
    data = os.read(source, size) if start is None else os.pread(source, size, start)
    sink.write(data)
    return len(data)
