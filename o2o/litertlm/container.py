"""The container of `.litertlm` files: a header, and sections that begin at multiples of 16 KiB.

    byte 0          8         20      24           32
         "LITERTLM" | version | zeros | header end | FlatBuffers: the table of sections | zeros | sections

`version` is three uint32. `header end` is a uint64: the end of the FlatBuffers data. The table gives
the kind of each section, its place, and further items, such as the type of a model.

Source: `litertlm_core` and `litertlm_header_schema_py_generated` of litert-lm-builder 0.18.1.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import flatbuffers
from flatbuffers import number_types
from flatbuffers.table import Table

from o2o.errors import ModelError
from o2o.streams import RangeSource, Source

MAGIC = b"LITERTLM"
VERSION = (1, 7, 0)
BLOCK = 16 * 1024
"""Bytes: each section begins at a multiple of it."""
_PREFIX = struct.Struct("<8s3I4xQ")

KINDS = (
    "none",
    "GenericBinaryData",
    "Deprecated",
    "TFLiteModel",
    "SP_Tokenizer",
    "LlmMetadataProto",
    "HF_Tokenizer_Zlib",
    "TFLiteWeights",
    "EmbeddingMetadataProto",
    "ExecutorMetadataProto",
    "TtsMetadataProto",
    "AsrMetadataProto",
)
"""Kinds of sections by their number in the schema."""
MODEL_TYPE = "model_type"
"""The item with the purpose of a TFLite model."""
PREFILL_DECODE = "tf_lite_prefill_decode"
"""The model type of the language model."""

Value = str | int | float | bool

# Types of items by their number in the schema. Each value is in a table of its own.
_STRING, _BOOL = 9, 8
_NUMBERS = {
    1: number_types.Uint8Flags,
    2: number_types.Int8Flags,
    3: number_types.Uint16Flags,
    4: number_types.Int16Flags,
    5: number_types.Uint32Flags,
    6: number_types.Int32Flags,
    7: number_types.Float32Flags,
    _BOOL: number_types.BoolFlags,
    10: number_types.Uint64Flags,
    11: number_types.Int64Flags,
    12: number_types.Float64Flags,
}


@dataclass(frozen=True)
class Section:
    """A section of a file.

    Attributes:
        kind: One of `KINDS`, or the number of an unknown kind.
        start: Its first byte in the file.
        size: The number of bytes.
        items: Values by key, such as the type of a model.
    """

    kind: str
    start: int
    size: int
    items: Mapping[str, Value] = field(default_factory=dict)

    @property
    def model_type(self) -> str | None:
        """The type of a TFLite model, such as `tf_lite_prefill_decode`."""
        value = self.items.get(MODEL_TYPE)
        return value.lower() if isinstance(value, str) else None

    @property
    def label(self) -> str:
        """Kind and model type, for messages."""
        return f"{self.kind} {self.model_type}" if self.model_type else self.kind


@dataclass(frozen=True)
class Bundle:
    """A file that was read.

    Attributes:
        source: The whole file.
        version: Three numbers.
        items: Values by key that belong to the whole file.
        sections: In the order of the table.
    """

    source: Source
    version: tuple[int, ...]
    items: Mapping[str, Value]
    sections: Sequence[Section]

    def section(self, kind: str, model_type: str | None = None) -> Section | None:
        """Return the first section of a kind.

        Args:
            kind: One of `KINDS`.
            model_type: The type of its model. A section without one matches `PREFILL_DECODE`.

        Returns:
            The section; None if there is none.
        """
        of_kind = (section for section in self.sections if section.kind == kind)
        return next(
            (one for one in of_kind if (one.model_type or PREFILL_DECODE) == (model_type or PREFILL_DECODE)),
            None,
        )

    def data(self, section: Section) -> bytes:
        """Read a small section.

        Args:
            section: One of `sections`.

        Returns:
            Its bytes.
        """
        return self.source.view(section.start, section.size).tobytes()

    @property
    def model_types(self) -> list[str]:
        """The types of its TFLite models, in order."""
        return [
            section.model_type or PREFILL_DECODE for section in self.sections if section.kind == "TFLiteModel"
        ]

    def language_model(self) -> RangeSource:
        """Return the section with the language model.

        Returns:
            A part of `source`: a TFLite file.

        Raises:
            ModelError: There is none, or its weights are in another section.
        """
        name = self.source.name
        if (section := self.section("TFLiteModel")) is None:
            others = ", ".join(dict.fromkeys(self.model_types)) or "no model at all"
            raise ModelError(f"{name}: it has no language model ({PREFILL_DECODE}), but {others}")
        if self.section("TFLiteWeights") is not None:
            raise ModelError(
                f"{name}: the weights of its language model are in a section of their own (TFLiteWeights), "
                "which is not supported: run it with LiteRT-LM"
            )
        return RangeSource(self.source, section.start, section.size)


def is_bundle(start: bytes | memoryview) -> bool:
    """Check whether a file is a `.litertlm` file.

    Args:
        start: Its first bytes.

    Returns:
        Whether it begins as one.
    """
    return bytes(start[: len(MAGIC)]) == MAGIC


def language_model(source: Source) -> Source:
    """Return the language model of a `.litertlm` file.

    Args:
        source: Any file.

    Returns:
        The part of the file that is a TFLite model; `source` itself if the file is no `.litertlm` file.

    Raises:
        ModelError: The file is damaged, or has no language model.
    """
    return read_bundle(source).language_model() if is_bundle(source.header) else source


def read_bundle(source: Source) -> Bundle:
    """Read the table of sections.

    Args:
        source: A `.litertlm` file.

    Returns:
        Its sections.

    Raises:
        ModelError: The file is truncated, damaged, or of another major version.
    """
    data, name = source.header, source.name
    size = source.size or len(data)
    if not is_bundle(data):
        raise ModelError(f"{name}: no LiteRT-LM file: it starts with {bytes(data[:8])!r}")
    if len(data) < _PREFIX.size:
        raise ModelError(f"{name}: truncated LiteRT-LM file of {len(data)} bytes")
    _, *version, end = _PREFIX.unpack_from(data)
    if version[0] != VERSION[0]:
        raise ModelError(
            f"{name}: a LiteRT-LM file of version {version[0]}, but this o2o reads version {VERSION[0]}"
        )
    if end > size:
        raise ModelError(f"{name}: truncated LiteRT-LM file: its header ends at byte {end} of {size}")
    try:
        items, sections = _parse_header(bytes(data[_PREFIX.size : end]))
    except (struct.error, IndexError, ValueError, TypeError, OverflowError) as error:
        raise ModelError(f"{name}: damaged LiteRT-LM file: its table of sections cannot be read") from error
    for section in sections:
        stop = section.start + section.size
        if section.start < end or section.size < 0:
            raise ModelError(
                f"{name}: damaged LiteRT-LM file: the section {section.label} begins at byte {section.start}"
            )
        if stop > size:
            raise ModelError(
                f"{name}: truncated LiteRT-LM file: the section {section.label} ends at byte {stop} of {size}"
            )
    return Bundle(source, tuple(version), items, sections)


@dataclass(frozen=True)
class Contents:
    """A section that is to be written.

    Attributes:
        kind: One of `KINDS`.
        size: The number of bytes.
        write: Appends the bytes to a binary file.
        items: Strings by key.
    """

    kind: str
    size: int
    write: Callable[[BinaryIO], object]
    items: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, kind: str, data: bytes, items: Mapping[str, str] | None = None) -> Contents:
        """Return a section of bytes in memory.

        Args:
            kind: One of `KINDS`.
            data: The bytes.
            items: As above.

        Returns:
            The section.
        """
        return cls(kind, len(data), lambda sink: sink.write(data), items or {})


@dataclass(frozen=True)
class BundlePlan:
    """The layout of a `.litertlm` file that is not written yet.

    Attributes:
        header: The first bytes of the file.
        sections: The sections with their first bytes in the file.
        size: The length of the file in bytes.
    """

    header: bytes
    sections: Sequence[tuple[int, Contents]]
    size: int

    def write(self, sink: BinaryIO) -> None:
        """Write the file, front to back.

        Args:
            sink: A binary file; it need not be seekable.

        Raises:
            OSError: The sink cannot be written.
        """
        sink.write(self.header)
        position = len(self.header)
        for start, contents in self.sections:
            sink.write(bytes(start - position))
            contents.write(sink)
            position = start + contents.size


def plan_bundle(items: Mapping[str, str], sections: Sequence[Contents]) -> BundlePlan:
    """Lay out a file. The same sections give the same header.

    Args:
        items: Strings by key that belong to the whole file.
        sections: The sections in their order in the file.

    Returns:
        The plan.
    """
    # The offsets have a fixed size, and are stored if they are not 0: the header's length is known before.
    end = _PREFIX.size + len(_pack_header(items, [(contents, 1) for contents in sections]))
    placed: list[tuple[int, Contents]] = []
    position = end
    for contents in sections:
        start = -(-position // BLOCK) * BLOCK
        placed.append((start, contents))
        position = start + contents.size
    table = _pack_header(items, [(contents, start) for start, contents in placed])
    assert _PREFIX.size + len(table) == end
    return BundlePlan(_PREFIX.pack(MAGIC, *VERSION, end) + table, placed, position)


# ---- FlatBuffers: tables by their slots -------------------------------------------------------------------


def _slot(index: int) -> int:
    """Bytes of a field's entry in the vtable."""
    return 4 + 2 * index


def _parse_header(data: bytes) -> tuple[dict[str, Value], list[Section]]:
    """(items, sections) of `LiteRTLMMetaData`."""
    (root,) = struct.unpack_from("<I", data)
    table = Table(data, root)
    items: dict[str, Value] = {}
    for system in _child(table, 0):
        items |= _items(system, 0)
    return items, [_section(entry) for parent in _child(table, 1) for entry in _children(parent, 0)]


def _section(table: Table) -> Section:
    start, stop = (_number(table, slot, number_types.Uint64Flags) for slot in (1, 2))
    kind = int(_number(table, 3, number_types.Uint8Flags))
    name = KINDS[kind] if kind < len(KINDS) else str(kind)
    return Section(name, int(start), int(stop - start), _items(table, 0))


def _items(table: Table, slot: int) -> dict[str, Value]:
    items: dict[str, Value] = {}
    for pair in _children(table, slot):
        key = _string(pair, 0)
        kind = int(_number(pair, 1, number_types.Uint8Flags))
        for value in _child(pair, 2):
            if kind == _STRING:
                items[key] = _string(value, 0)
            elif kind in _NUMBERS:
                items[key] = _number(value, 0, _NUMBERS[kind])
    return items


def _number(table: Table, index: int, flags: Any) -> int | float | bool:
    offset = table.Offset(_slot(index))
    value: int | float | bool = table.Get(flags, table.Pos + offset) if offset else flags.py_type(0)
    return value


def _string(table: Table, index: int) -> str:
    offset = table.Offset(_slot(index))
    return bytes(table.String(table.Pos + offset)).decode() if offset else ""


def _child(table: Table, index: int) -> Iterator[Table]:
    if offset := table.Offset(_slot(index)):
        yield Table(table.Bytes, table.Indirect(table.Pos + offset))


def _children(table: Table, index: int) -> Iterator[Table]:
    if offset := table.Offset(_slot(index)):
        start, count = table.Vector(offset), table.VectorLen(offset)
        if count > len(table.Bytes) // 4:
            raise IndexError(f"a vector of {count} tables")
        for number in range(count):
            yield Table(table.Bytes, table.Indirect(start + 4 * number))


def _pack_header(items: Mapping[str, str], sections: Sequence[tuple[Contents, int]]) -> bytes:
    builder = flatbuffers.Builder(BLOCK)
    packed = []
    for contents, start in sections:
        pairs = _pack_items(builder, contents.items)
        builder.StartObject(4)
        builder.PrependUOffsetTRelativeSlot(0, pairs, 0)
        builder.PrependUint64Slot(1, start, 0)
        builder.PrependUint64Slot(2, start + contents.size, 0)
        builder.PrependUint8Slot(3, KINDS.index(contents.kind), 0)
        packed.append(builder.EndObject())
    children = [_pack_parent(builder, _pack_items(builder, items))]
    children += [_pack_parent(builder, _pack_vector(builder, packed))]
    builder.StartObject(2)
    for index, child in enumerate(children):
        builder.PrependUOffsetTRelativeSlot(index, child, 0)
    builder.Finish(builder.EndObject())
    return bytes(builder.Output())


def _pack_items(builder: flatbuffers.Builder, items: Mapping[str, str]) -> int:
    pairs = []
    for key, text in items.items():
        string, name = builder.CreateString(text), builder.CreateString(key)
        value = _pack_parent(builder, string)
        builder.StartObject(3)
        builder.PrependUOffsetTRelativeSlot(0, name, 0)
        builder.PrependUint8Slot(1, _STRING, 0)
        builder.PrependUOffsetTRelativeSlot(2, value, 0)
        pairs.append(builder.EndObject())
    return _pack_vector(builder, pairs)


def _pack_parent(builder: flatbuffers.Builder, child: int) -> int:
    """A table with one field: a string or a vector."""
    builder.StartObject(1)
    builder.PrependUOffsetTRelativeSlot(0, child, 0)
    return int(builder.EndObject())


def _pack_vector(builder: flatbuffers.Builder, tables: Sequence[int]) -> int:
    builder.StartVector(4, len(tables), 4)
    for table in reversed(tables):
        builder.PrependUOffsetTRelative(table)
    return int(builder.EndVector())
