"""`Model` -> bytes of a Circle or TFLite file, head first.

    | FlatBuffers tables | small constants and metadata | large constants |
      every offset in them points forward, which is legal FlatBuffers

FlatBuffers builders write back to front and so put the data before the tables; here the tables are built
with empty data vectors whose offsets are then patched to point behind them. A reader that only wants the
graph needs the first two parts, and constants are streamed from wherever they lie (a mapped file, a
checkpoint) straight into the sink, one at a time. When the whole file would not fit FlatBuffers' 31-bit
offsets, large constants are referred to by `Buffer.offset` and `Buffer.size` instead.
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

from o2o.cli.progress import progress
from o2o.errors import ModelError
from o2o.formats.concatenated_tensor import ConcatenatedTensor
from o2o.formats.external_tensor import ExternalTensor
from o2o.formats.schema import DATA_SLOT, OFFSET_SLOT, SIZE_SLOT, Dialect
from o2o.formats.tables import Tables
from o2o.formats.tensors import LARGE, SourceTensor, stream
from o2o.model import Model
from o2o.streams import Source, framing

ALIGNMENT = 16  # of small constants: the schemas' force_align
LARGE_ALIGNMENT = 64  # of large ones: a cache line, and what XNNPACK likes best
FLATBUFFER_LIMIT = (1 << 31) - 1
SHARED = 64  # bytes from which equal vectors in the tables are one
LONG = 256_000_000  # bytes from which writing is worth a progress bar


@dataclass(frozen=True)
class Segment:
    """A run of bytes behind the tables: `payload` goes to byte `start` of the file."""

    start: int
    payload: bytes | ir.TensorProtocol


@dataclass(frozen=True)
class Plan:
    """A file to be: its first bytes, what follows them in order, and how many bytes that makes."""

    tables: bytes
    segments: list[Segment]
    size: int

    def write(self, sink: BinaryIO, *, passing: bool = False) -> None:
        """Write the file to `sink`, front to back.

        passing: nothing will be asked of the model's sources any more, so that what comes through a pipe
        may be passed on instead of being kept. Raises ModelError when a source ends early, OSError.
        """
        for source, ranges in self._sources().items():
            if passing:
                source.pass_on(ranges)
            else:
                source.keep()
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
        """What is wanted of each source, (start, size) in the order of writing."""
        wanted: dict[Source, list[tuple[int, int]]] = {}
        for segment in self.segments:
            payload = segment.payload
            for part in payload.parts if isinstance(payload, ConcatenatedTensor) else (payload,):
                if isinstance(part, SourceTensor):
                    wanted.setdefault(part.source, []).append((part.span.start, part.span.size))
        return wanted


def write(model: Model, sink: BinaryIO, limit: int = FLATBUFFER_LIMIT) -> int:
    """Write `model` to `sink`, front to back, and return the number of bytes: see `plan` and `Plan.write`."""
    planned = plan(model, limit)
    planned.write(sink)
    return planned.size


def plan(model: Model, limit: int = FLATBUFFER_LIMIT) -> Plan:
    """The file that `model` will be. Constants are neither read nor copied.

    limit: the size in bytes from which large constants are stored by offset and size. Raises ModelError
    when the model cannot be written.
    """
    builder = Tables(model)
    root, payloads = builder.build()
    sizes = [_size(payload) for payload in payloads]
    large = [size >= LARGE and not isinstance(p, bytes) for p, size in zip(payloads, sizes, strict=True)]
    # A generous bound decides the form before the exact layout is known.
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
    position = inside = len(tables)  # the end so far, and that of what FlatBuffers' own offsets reach
    head = len(tables)
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
                # a vector is its length and then its bytes; it is the bytes that are aligned
                start = -(-(position + 4) // alignment) * alignment
                fields.put_offset(index + 1, start - 4)
                segments.append(Segment(start - 4, struct.pack("<I", sizes[index])))
                segments.append(Segment(start, payload))
            position = start + sizes[index]
            inside = inside if by_offset[index] else position
            head = head if pass_large else position
    if inside > FLATBUFFER_LIMIT:
        raise ModelError(
            "the graph and its small constants alone exceed what FlatBuffers can address (2 GiB)"
        )
    inline = [s for s, is_large, by in zip(sizes, large, by_offset, strict=True) if is_large and not by]
    frame = framing.Frame(head, position, tuple(inline)).packed()
    tables[framing.AT : framing.AT + len(frame)] = frame
    return Plan(bytes(tables), segments, position)


def _size(payload: bytes | ir.TensorProtocol) -> int:
    """How many bytes of `payload` are in the file: none of what is only referred to."""
    if isinstance(payload, bytes):
        return len(payload)
    return 0 if isinstance(payload, ExternalTensor) else payload.nbytes


def _is_file(sink: BinaryIO) -> bool:
    """Whether this is the end of a pipe: only then does its bar have the terminal for itself."""
    try:
        return stat.S_ISREG(os.fstat(sink.fileno()).st_mode)
    except OSError:
        return False


class _Builder(flatbuffers.Builder):
    """Writes long vectors of equal numbers once: the scales and zero points of weights that the graph of each
    signature has. FlatBuffers may refer to one from many places."""

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
    # Room for the frame behind the identifier. All offsets are relative; only that of the root crosses it.
    length = framing.packed_length(count)
    tables[framing.AT : framing.AT] = bytes(length)
    struct.pack_into("<I", tables, 0, struct.unpack_from("<I", tables)[0] + length)
    return tables


class _BufferFields:
    """Finds and patches the fields of the Buffer tables inside packed tables."""

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
