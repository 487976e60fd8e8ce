"""A `bytes` object that consists of a writable header and a memory-mapped file, without reading the file.

This depends on three facts. CPython stores the contents of `bytes` in the object; PyPy does not. The
allocator gives an object of this size its own pages, as malloc of glibc and macOS does. With an allocator
that places other data in these pages, mapping would destroy that data. MAP_FIXED is 0x10, as on Linux and
macOS. `tests/runtime_py/engines/litert/test_mapped_bytes.py` fails on a platform where one of them is false.
musl has not been tested.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os

PAGE = mmap.PAGESIZE
MIN_MAPPED = 64_000_000
"""Bytes of a file from which it is mapped. Reading a smaller one takes milliseconds, and malloc may place it
in pages that hold other data."""
_FIXED = 0x10  # MAP_FIXED, which Python's mmap lacks

# Functions of the C API: bytes of a size with undefined contents, and the address of the contents.
_new_bytes = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t)(
    ("PyBytes_FromStringAndSize", ctypes.pythonapi)
)
_address_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object)(("PyBytes_AsString", ctypes.pythonapi))


class MappedBytes:
    """A header to be written, then the file from `start` on.

    LiteRT takes a model from memory as `bytes` only, and reads weights from there. So CPython makes `bytes`
    of that size with undefined contents, which take no memory until they are written. The file is then mapped
    over its pages; the last page is filled up with zeros.
    """

    data: bytes
    start: int

    def __init__(self, header_size: int, file: int) -> None:
        """Map a file.

        Args:
            header_size: Bytes of the header.
            file: A file descriptor, which may be closed afterwards.

        Raises:
            OSError: The file cannot be read.
            MemoryError: There is no address space.
        """
        size = os.fstat(file).st_size
        self._pages = -(-size // PAGE) * PAGE
        self._mapped = False
        self.data = _new_bytes(None, header_size + PAGE - 1 + self._pages)
        self.address: int = _address_of(self.data)
        self.start = -(-(self.address + header_size) // PAGE) * PAGE - self.address
        self._clear(0, self.start)
        self._clear(self.start + self._pages, len(self.data))
        if size >= MIN_MAPPED:
            # Where the system or the kind of file does not support it, the file is read instead.
            with contextlib.suppress(OSError, AttributeError):
                self._map(mmap.PROT_READ, mmap.MAP_PRIVATE, file)
                self._mapped = True
        if not self._mapped:
            self._clear(self.start + size, self.start + self._pages)
            self._read(file, size)

    def write(self, header: bytes, position: int = 0) -> None:
        """Write the header, or a part of it.

        Args:
            header: The bytes. They end at `header_size` or before.
            position: Where the first one goes.
        """
        assert position + len(header) <= self.start
        ctypes.memmove(self.address + position, header, len(header))

    def close(self) -> None:
        """Unmap the file. `data` must not be used afterwards."""
        if self._mapped:  # the memory's next owner may write to it
            self._map(mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1)
        self.data, self._mapped = b"", False

    def _clear(self, start: int, stop: int) -> None:
        ctypes.memset(self.address + start, 0, stop - start)

    def _read(self, file: int, size: int) -> None:
        target = memoryview((ctypes.c_char * size).from_address(self.address + self.start)).cast("B")
        done = 0
        while done < size:
            if (step := os.preadv(file, [target[done:]], done)) == 0:
                raise OSError(errno.EIO, "the file became shorter while it was read")
            done += step

    def _map(self, protection: int, flags: int, file: int) -> None:
        """Map `file` over the pages behind the header (MAP_FIXED). Raises OSError."""
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [
            *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64)
        ]
        address = self.address + self.start
        if libc.mmap(address, self._pages, protection, flags | _FIXED, file, 0) != address:
            raise OSError(ctypes.get_errno(), "mmap")
