"""Writer of Circle and TFLite files: `Model` -> bytes, header first.

    | frame, FlatBuffers tables | small constants and metadata | large constants |
      every offset in them points forward, which is legal FlatBuffers

FlatBuffers builders write back to front, and so put the data before the tables. Here the tables are built
with empty data vectors. Their offsets are then patched to point behind the tables. A reader of the graph
needs only the header, the first two parts. Constants are streamed one at a time from their source (a mapped
file, a checkpoint) to the sink.

An inline buffer has `Buffer.offset` and `Buffer.size` 0, as Samsung's reader (TICO) requires. The frame
stores the sizes of the inline buffers behind the header (`o2o.streams.framing`). A file larger than
FlatBuffers' 31-bit offsets stores its large constants by `Buffer.offset` and `Buffer.size` instead.
"""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

import flatbuffers
import numpy as np
import onnx_ir as ir

from o2o.cli.progress import LONG, progress
from o2o.errors import ModelError
from o2o.formats.associated_files import pack_archive
from o2o.formats.concatenated_tensor import ConcatenatedTensor
from o2o.formats.schema import DATA_SLOT, OFFSET_SLOT, SIZE_SLOT, Dialect
from o2o.formats.tables import Tables
from o2o.formats.tensors import LARGE, SourceTensor, stream
from o2o.formats.unbound_tensor import UnboundTensor
from o2o.model import Model
from o2o.streams import Source, framing

ALIGNMENT = 16  # bytes, of small constants: `force_align` in the schemas
LARGE_ALIGNMENT = 64  # bytes, of large constants: a cache line, fastest for XNNPACK
FLATBUFFER_LIMIT = (1 << 31) - 1
SHARED = 64  # bytes from which equal vectors in the tables are stored once


@dataclass(frozen=True)
class Segment:
    """A range of bytes behind the tables.

    Attributes:
        start: Its first byte in the file.
        payload: Its contents.
    """

    start: int
    payload: bytes | ir.TensorProtocol


@dataclass(frozen=True)
class Plan:
    """The layout of a file that is not written yet.

    Attributes:
        tables: The first bytes of the file.
        segments: The contents behind them, in order.
        size: The length of the file in bytes.
    """

    tables: bytes
    segments: list[Segment]
    size: int

    def write(self, sink: BinaryIO, *, consume_sources: bool = False) -> None:
        """Write the file, front to back.

        Args:
            sink: A binary file; it need not be seekable.
            consume_sources: The model's sources are not read again. Data in a pipe is then passed on
                instead of stored.

        Raises:
            ModelError: A source ends early.
            OSError: The sink cannot be written.
        """
        for source, ranges in self._sources().items():
            if consume_sources:
                source.announce_copies(ranges)
            else:
                source.spool()
        with progress("write", self.size, shown=self.size >= LONG and _is_file(sink)) as done:
            sink.write(self.tables)
            position = len(self.tables)
            for segment in self.segments:
                sink.write(bytes(segment.start - position))
                if isinstance(segment.payload, bytes):
                    sink.write(segment.payload)
                else:
                    stream(segment.payload, sink)
                end = segment.start + _size(segment.payload)
                done(end - position)
                position = end

    def _sources(self) -> dict[Source, list[tuple[int, int]]]:
        """The ranges to copy from each source, (start, size) in the order of writing."""
        ranges: dict[Source, list[tuple[int, int]]] = {}
        for segment in self.segments:
            payload = segment.payload
            for part in payload.parts if isinstance(payload, ConcatenatedTensor) else (payload,):
                if isinstance(part, SourceTensor):
                    ranges.setdefault(part.source, []).append((part.span.start, part.span.size))
        return ranges


def plan(model: Model, limit: int = FLATBUFFER_LIMIT) -> Plan:
    """Lay out the file of a model. Constants are neither read nor copied.

    Args:
        model: The model.
        limit: The size in bytes beyond which large constants are stored by offset and size.

    Returns:
        The layout.

    Raises:
        ModelError: The model has features that its format lacks, or its tables exceed 2 GiB.
    """
    builder = Tables(model)
    root, payloads = builder.build()
    sizes = [_size(payload) for payload in payloads]
    large = [size >= LARGE and not isinstance(p, bytes) for p, size in zip(payloads, sizes, strict=True)]
    # An upper bound decides how large constants are stored, before the exact layout is known.
    slack = LARGE_ALIGNMENT * (len(sizes) + 1)
    by_offset = [False] * len(sizes)
    tables = bytearray()
    if sum(sizes) + slack <= limit:
        tables = _pack(root, builder.dialect, sum(large))
    if len(tables) + sum(sizes) + slack > limit:
        by_offset = large
        for buffer, outside in zip(root.buffers[1:], by_offset, strict=True):
            if outside:
                buffer.data, buffer.offset, buffer.size = None, 1, 1
        tables = _pack(root, builder.dialect, 0)
    segments: list[Segment] = []
    position = inside = len(tables)  # the end so far; the end of what FlatBuffers' own offsets address
    header = len(tables)
    fields = _BufferFields(tables)
    for pass_large in (False, True):
        for index, payload in enumerate(payloads):
            if large[index] != pass_large or sizes[index] == 0:
                continue
            alignment = LARGE_ALIGNMENT if pass_large else ALIGNMENT
            if by_offset[index]:
                start = -(-position // alignment) * alignment
                fields.put_range(index + 1, start, sizes[index])
                segments.append(Segment(start, payload))
            else:
                # a vector is its length, then its bytes, which are aligned
                start = -(-(position + 4) // alignment) * alignment
                fields.put_offset(index + 1, start - 4)
                segments.append(Segment(start - 4, struct.pack("<I", sizes[index])))
                segments.append(Segment(start, payload))
            position = start + sizes[index]
            inside = inside if by_offset[index] else position
            header = header if pass_large else position
    if inside > FLATBUFFER_LIMIT:
        raise ModelError("the graph and its small constants exceed 2 GiB, the limit of FlatBuffers")
    inline = [s for s, is_large, by in zip(sizes, large, by_offset, strict=True) if is_large and not by]
    if model.associated_files:  # no frame: a reader needs the whole file
        archive = pack_archive(model.associated_files, position)
        segments.append(Segment(position, archive))
        return Plan(bytes(tables), segments, position + len(archive))
    frame = framing.Frame(header, position, tuple(inline)).packed()
    tables[framing.AT : framing.AT + len(frame)] = frame
    return Plan(bytes(tables), segments, position)


def _size(payload: bytes | ir.TensorProtocol) -> int:
    """The bytes of `payload` in the file: none of an external tensor."""
    if isinstance(payload, bytes):
        return len(payload)
    return 0 if isinstance(payload, UnboundTensor) else payload.nbytes


def _is_file(sink: BinaryIO) -> bool:
    """Whether `sink` is a regular file. Only the last stage of a pipe shows a progress bar."""
    try:
        return stat.S_ISREG(os.fstat(sink.fileno()).st_mode)
    except OSError:
        return False


class _Builder(flatbuffers.Builder):
    """Writes equal long vectors once: each signature's graph repeats the scales and zero points of its
    weights.

    FlatBuffers allows several references to one vector.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._vectors: dict[tuple[str, bytes], int] = {}

    def CreateNumpyVector(self, x: np.ndarray) -> int:
        if x.nbytes < SHARED:
            return int(super().CreateNumpyVector(x))
        key = x.dtype.str, x.tobytes()
        if key not in self._vectors:
            self._vectors[key] = super().CreateNumpyVector(x)
        return self._vectors[key]


def _pack(root: Any, dialect: Dialect, count: int) -> bytearray:
    """The tables as FlatBuffers packs them, with room for a frame of `count` sizes."""
    builder = _Builder(1 << 16)
    builder.Finish(root.Pack(builder), dialect.identifier)
    tables = bytearray(builder.Output())
    # Insert room for the frame behind the identifier. Only the root's offset crosses it.
    length = framing.packed_length(count)
    tables[framing.AT : framing.AT] = bytes(length)
    struct.pack_into("<I", tables, 0, struct.unpack_from("<I", tables)[0] + length)
    return tables


class _BufferFields:
    """Patches the fields of Buffer tables in packed tables."""

    def __init__(self, tables: bytearray) -> None:
        self.tables = tables
        root = self._u32(0)
        vector = self._follow(self._field(root, 12))  # Model.buffers is the fifth field of both dialects
        count = self._u32(vector)
        self.positions = [self._follow(vector + 4 + 4 * index) for index in range(count)]

    def _u32(self, position: int) -> int:
        return int(struct.unpack_from("<I", self.tables, position)[0])

    def _follow(self, position: int) -> int:
        return position + self._u32(position)

    def _field(self, table: int, slot: int) -> int:
        vtable = table - int(struct.unpack_from("<i", self.tables, table)[0])
        return table + int(struct.unpack_from("<H", self.tables, vtable + slot)[0])

    def put_offset(self, index: int, target: int) -> None:
        position = self._field(self.positions[index], DATA_SLOT)
        struct.pack_into("<I", self.tables, position, target - position)

    def put_range(self, index: int, start: int, size: int) -> None:
        struct.pack_into("<Q", self.tables, self._field(self.positions[index], OFFSET_SLOT), start)
        struct.pack_into("<Q", self.tables, self._field(self.positions[index], SIZE_SLOT), size)
