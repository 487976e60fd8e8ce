"""Copies between file descriptors: in the kernel where possible, else through memory."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from functools import partial
from typing import BinaryIO

MAX_CALL = 1 << 30  # bytes to copy in one system call
CHUNK = 1 << 20  # bytes in memory at a time
_UNSUPPORTED = {errno.EINVAL, errno.EXDEV, errno.EBADF, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}


Mover = Callable[[int | None, int], int]  # (start, count) -> bytes copied; 0 at the end


class EndsEarly(Exception):
    """The source has fewer bytes than requested."""


def copy(source: int, start: int | None, count: int | None, sink: BinaryIO) -> int:
    """Append bytes of a file descriptor to a sink.

    Args:
        source: The file descriptor.
        start: The first byte, for a file; None for the current position, as for a pipe.
        count: The number of bytes; None for all up to the end.
        sink: A binary file.

    Returns:
        The number of bytes copied.

    Raises:
        EndsEarly: The source has fewer than `count` bytes.
        OSError: The sink cannot be written: the disk is full, or the pipe is closed.
    """
    moved = 0
    through_memory: Mover = partial(_through_memory, source, sink)
    move = _in_kernel(source, start, sink) or through_memory
    while count is None or moved < count:
        size = MAX_CALL if count is None else min(MAX_CALL, count - moved)
        try:
            step = move(None if start is None else start + moved, size)
        except OSError as error:
            # This file system or file type does not support the call: it fails before it copies anything.
            if error.errno not in _UNSUPPORTED or move is through_memory:
                raise
            move = through_memory
            continue
        if step == 0 and move is not through_memory:
            move = through_memory  # some file systems return 0 in the middle of a file: try again
            continue
        if step == 0:
            if count is None:
                break
            raise EndsEarly
        moved += step
    return moved


def _in_kernel(source: int, start: int | None, sink: BinaryIO) -> Mover | None:
    """The fastest system call for this pair of files; None if there is none."""
    try:
        sink.flush()
        target = sink.fileno()
    except (OSError, AttributeError):  # no descriptor: bytes in memory
        return None
    from_pipe, to_pipe = (stat.S_ISFIFO(os.fstat(descriptor).st_mode) for descriptor in (source, target))
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
