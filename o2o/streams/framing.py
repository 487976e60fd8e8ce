"""The frame: where a model file's header ends, so that a reader of a pipe knows when it has the whole graph.

    byte 0     4    8            16           24           32       40
         root  id   "o2o frm2"   header bytes   file bytes   count    sizes | FlatBuffers tables, small
         constants | data

All numbers are little endian: three uint64, then `count` uint32 sizes, padded to a multiple of 8 bytes. The
sizes belong to the inline constants behind the header, in the order of their buffers. FlatBuffers stores the
length of a vector with its data. A reader of the header alone finds it only here.

FlatBuffers finds its root table by the offset in the first four bytes and ignores the bytes between. A file
without a frame is read as well: its header is the whole file. In files of older versions the frame is `"o2o
head"` and two uint64, and each inline buffer stores its size in `Buffer.size`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

MAGIC, OLD_MAGIC = b"o2o frm2", b"o2o head"
AT = 8  # the frame's first byte, behind the root offset and the file identifier
_FIELDS, _OLD_FIELDS = struct.Struct("<8sQQQ"), struct.Struct("<8sQQ")
LENGTH = _FIELDS.size  # bytes of the frame before the sizes
ALIGNMENT = 8  # of the frame's length: the largest alignment in the tables behind it


@dataclass(frozen=True)
class Frame:
    """The lengths of a model file and of its parts, in bytes.

    Attributes:
        header: The length of the header, from the start of the file.
        file: The length of the file.
        sizes: The sizes of the inline constants behind the header; None in a file of an older version.
    """

    header: int
    file: int
    sizes: tuple[int, ...] | None = ()

    def packed(self) -> bytes:
        """Return the stored form of the frame.

        Returns:
            `packed_length(len(sizes))` bytes.
        """
        sizes = self.sizes or ()
        fields = _FIELDS.pack(MAGIC, self.header, self.file, len(sizes))
        return (fields + struct.pack(f"<{len(sizes)}I", *sizes)).ljust(packed_length(len(sizes)), b"\0")


def packed_length(count: int) -> int:
    """Return the length of a frame.

    Args:
        count: The number of sizes in it.

    Returns:
        A number of bytes, a multiple of `ALIGNMENT`.
    """
    return -(-(LENGTH + 4 * count) // ALIGNMENT) * ALIGNMENT


def parse_frame(start: bytes | memoryview) -> Frame | None:
    """Read the frame at the start of a file.

    Args:
        start: The first bytes of the file, at least `AT + LENGTH`; all of the header if the sizes are needed.

    Returns:
        The frame, with the sizes that are in `start`; None for a file without a frame or with a damaged one.
    """
    if len(start) < AT + LENGTH:
        return None
    magic, header, file, count = _FIELDS.unpack_from(start, AT)
    if magic == OLD_MAGIC:
        return Frame(header, file, None) if AT + _OLD_FIELDS.size <= header <= file else None
    if magic != MAGIC or not AT + packed_length(count) <= header <= file:
        return None
    count = min(count, (len(start) - AT - LENGTH) // 4)
    return Frame(header, file, struct.unpack_from(f"<{count}I", start, AT + LENGTH))
