"""A file's bytes behind others, in one piece of memory, without reading the file."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os

PAGE = mmap.PAGESIZE
WORTH_MAPPING = 64_000_000
"""Bytes of a file from which it is mapped. Reading less takes milliseconds, and malloc need not have a
mapping of its own for so little, in which foreign pages could lie."""
_FIXED = 0x10  # MAP_FIXED, which Python's mmap does not know, on Linux and on macOS

# As the C API calls them: bytes of a size whose contents are still to be written, and where these are.
_new_bytes = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t)(
    ("PyBytes_FromStringAndSize", ctypes.pythonapi)
)
_address_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object)(("PyBytes_AsString", ctypes.pythonapi))


class FileBehind:
    """`room` bytes to write to, then, from `start` on, the file: `data` is all of it.

    LiteRT takes a model from memory as `bytes` only, and reads it where it is. So this has CPython make
    `bytes` of that size without contents (which take no memory until someone writes there), and then maps
    the file over its pages; the last one is filled up with zeros.
    """

    data: bytes
    start: int

    def __init__(self, room: int, file: int) -> None:
        """file: a descriptor, which may be closed afterwards. Raises OSError, MemoryError."""
        size = os.fstat(file).st_size
        self._pages = -(-size // PAGE) * PAGE
        self._mapped = False
        self.data = _new_bytes(None, room + PAGE - 1 + self._pages)
        self._address: int = _address_of(self.data)
        self.start = -(-(self._address + room) // PAGE) * PAGE - self._address
        self._clear(0, self.start)
        self._clear(self.start + self._pages, len(self.data))
        if size >= WORTH_MAPPING:
            # Where a system or a kind of file cannot do this, it is read.
            with contextlib.suppress(OSError, AttributeError):
                self._map(mmap.PROT_READ, mmap.MAP_PRIVATE, file)
                self._mapped = True
        if not self._mapped:
            self._clear(self.start + size, self.start + self._pages)
            self._read(file, size)

    def write(self, head: bytes | bytearray) -> None:
        """Put `head`, at most `room` bytes, at the beginning."""
        assert len(head) <= self.start
        ctypes.memmove(self._address, bytes(head), len(head))

    def close(self) -> None:
        """Let go of the file. Nobody may look at `data` any more."""
        if self._mapped:  # whoever gets this memory next may write to it
            self._map(mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1)
        self.data, self._mapped = b"", False

    def _clear(self, start: int, stop: int) -> None:
        ctypes.memset(self._address + start, 0, stop - start)

    def _read(self, file: int, size: int) -> None:
        target = memoryview((ctypes.c_char * size).from_address(self._address + self.start)).cast("B")
        done = 0
        while done < size:
            if (step := os.preadv(file, [target[done:]], done)) == 0:
                raise OSError(errno.EIO, "the file became shorter while it was read")
            done += step

    def _map(self, protection: int, flags: int, file: int) -> None:
        """Replace the pages of the file's part. Raises OSError."""
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [
            *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64)
        ]
        where = self._address + self.start
        if libc.mmap(where, self._pages, protection, flags | _FIXED, file, 0) != where:
            raise OSError(ctypes.get_errno(), "mmap")
