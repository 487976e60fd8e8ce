"""How a file says where its head ends, so that a pipe's reader knows when it has seen the graph.

    byte 0   4   8           16              24               32
         root  id  "o2o head"  length of head  length of file   FlatBuffers tables, small constants | data

FlatBuffers finds its root table by the offset in the first four bytes and minds nothing between; so these
24 bytes are legal, and files without them are read as well: then the whole file is the head.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

MAGIC = b"o2o head"
AT = 8  # behind the root's offset and the file's identifier
_FORM = struct.Struct("<8sQQ")
LENGTH = _FORM.size  # a multiple of 8, as all alignment inside the tables is at most that


@dataclass(frozen=True)
class Frame:
    """Lengths in bytes, both from the start of the file."""

    head: int
    file: int

    def packed(self) -> bytes:
        return _FORM.pack(MAGIC, self.head, self.file)


def frame_of(start: bytes | memoryview) -> Frame | None:
    """The frame in the first `AT + LENGTH` bytes of a file, if it has one."""
    if len(start) < AT + LENGTH:
        return None
    magic, head, file = _FORM.unpack_from(start, AT)
    return Frame(head, file) if magic == MAGIC and AT + LENGTH <= head <= file else None
