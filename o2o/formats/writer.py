"""`Model` -> bytes of a Circle or TFLite file, header first.

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
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, BinaryIO

import flatbuffers
import numpy as np
import onnx_ir as ir

from o2o import contract, history
from o2o.errors import ModelError
from o2o.formats.constants import LARGE, Stored, bytes_in_memory, storage_key
from o2o.formats.schema import DATA_SLOT, DIALECTS, OFFSET_SLOT, SIZE_SLOT, SUBGRAPH_FIELDS, Dialect
from o2o.model import CUSTOM_DOMAIN, Model, Signature
from o2o.progress import progress
from o2o.streams import Source, framing
from o2o.weights import reference
from o2o.weights.reference import Reference

ALIGNMENT = 16  # of small constants: the schemas' force_align
LARGE_ALIGNMENT = 64  # of large ones: a cache line, and what XNNPACK likes best
FLATBUFFER_LIMIT = (1 << 31) - 1
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
                    _stream(segment.payload, sink)
                end = segment.start + _size(segment.payload)
                done(end - position)
                position = end

    def _sources(self) -> dict[Source, list[tuple[int, int]]]:
        """What is wanted of each source, (start, size) in the order of writing."""
        wanted: dict[Source, list[tuple[int, int]]] = {}
        for segment in self.segments:
            if isinstance(segment.payload, Stored):
                span = segment.payload.span
                wanted.setdefault(segment.payload.source, []).append((span.start, span.size))
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
    builder = _Builder(model)
    root, payloads = builder.build()
    sizes = [_size(payload) for payload in payloads]
    large = [size >= LARGE and not isinstance(p, bytes) for p, size in zip(payloads, sizes, strict=True)]
    for buffer, size, is_large in zip(root.buffers[1:], sizes, large, strict=True):
        if is_large:
            buffer.size = size  # for who has only the head: the vector's own length lies with the data
    # A generous bound decides the form before the exact layout is known.
    slack = LARGE_ALIGNMENT * (len(sizes) + 1)
    by_offset = [False] * len(sizes)
    tables = bytearray()
    if sum(sizes) + slack <= limit:
        tables = _pack(root, builder.dialect)
    if len(tables) + sum(sizes) + slack > limit:
        by_offset = large
        for buffer, outside in zip(root.buffers[1:], by_offset, strict=True):
            if outside:
                buffer.data, buffer.offset, buffer.size = None, 1, 1
        tables = _pack(root, builder.dialect)
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
    tables[framing.AT : framing.AT + framing.LENGTH] = framing.Frame(head, position).packed()
    return Plan(bytes(tables), segments, position)


def _size(payload: bytes | ir.TensorProtocol) -> int:
    """How many bytes of `payload` are in the file: none of what is only referred to."""
    if isinstance(payload, bytes):
        return len(payload)
    return 0 if isinstance(payload, Reference) else payload.nbytes


def _stream(tensor: ir.TensorProtocol, sink: BinaryIO) -> None:
    if (raw := bytes_in_memory(tensor)) is not None:
        sink.write(raw.data)
    elif hasattr(tensor, "tofile"):
        tensor.tofile(sink)
    else:
        sink.write(tensor.tobytes())


def _is_file(sink: BinaryIO) -> bool:
    """Whether this is the end of a pipe: only then does its bar have the terminal for itself."""
    try:
        return stat.S_ISREG(os.fstat(sink.fileno()).st_mode)
    except OSError:
        return False


def _pack(root: Any, dialect: Dialect) -> bytearray:
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(root.Pack(builder), dialect.identifier)
    tables = bytearray(builder.Output())
    # Room for the frame behind the identifier. All offsets are relative; only that of the root crosses it.
    tables[framing.AT : framing.AT] = bytes(framing.LENGTH)
    struct.pack_into("<I", tables, 0, struct.unpack_from("<I", tables)[0] + framing.LENGTH)
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


class _Builder:
    """Turns a `Model` into the object-API tables of its dialect, and gathers the payloads of its buffers."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.dialect = DIALECTS[model.format]
        self.payloads: list[bytes | ir.TensorProtocol] = []
        self.buffer_of: dict[Hashable, int] = {}
        self.references: dict[int, Reference] = {}
        self.opcode_of: dict[tuple[str, str, int], int] = {}
        self.graph_index = {id(graph): index for index, graph in enumerate(model.graphs)}
        self.tensor_index: list[dict[int, int]] = []

    def build(self) -> tuple[Any, list[bytes | ir.TensorProtocol]]:
        root = self.dialect.table("Model")()
        root.version = self.dialect.version
        self._set_fields(root, {k: v for k, v in self.model.fields.items() if k != "metadataBuffer"})
        root.subgraphs = [self._subgraph(graph) for graph in self.model.graphs]
        root.operatorCodes = [self._operator_code(*key) for key in self.opcode_of]
        root.signatureDefs = [self._signature(s) for s in self.model.signatures] or None
        root.metadata = [self._metadata(name, data) for name, data in self._all_metadata()] or None
        if "metadataBuffer" in self.model.fields:
            root.metadataBuffer = _ints([self._payload(d) for d in self.model.fields["metadataBuffer"]])
        buffer = self.dialect.table("Buffer")
        root.buffers = [buffer() for _ in range(len(self.payloads) + 1)]  # the first stands for "no data"
        for table in root.buffers[1:]:
            table.data = np.zeros(0, np.uint8)
        return root, self.payloads

    def _all_metadata(self) -> list[tuple[str, bytes]]:
        own = [
            (contract.METADATA_NAME, contract.dumps(self.model)),
            (history.METADATA_NAME, history.dumps(self.model.history)),
            (reference.METADATA_NAME, reference.dumps(self.references, self.model.unused)),
        ]
        return [*self.model.metadata, *((name, data) for name, data in own if data is not None)]

    def _payload(self, payload: bytes | ir.TensorProtocol) -> int:
        self.payloads.append(payload)
        return len(self.payloads)

    def _subgraph(self, graph: ir.Graph) -> Any:
        table = self.dialect.table("SubGraph")()
        table.name = graph.name
        index = self._number_values(graph)
        self.tensor_index.append(index)
        table.tensors = self.tensors
        table.inputs = _ints([index[id(value)] for value in graph.inputs])
        table.outputs = _ints([index[id(value)] for value in graph.outputs])
        table.operators = [self._operator(node, index) for node in graph]
        self._set_fields(table, graph.meta.get("fields", {}))
        return table

    def _number_values(self, graph: ir.Graph) -> dict[int, int]:
        """Tensor numbers by id(value): inputs, initializers, then operators' values as they come."""
        values: list[ir.Value] = []
        index: dict[int, int] = {}
        nodes = list(graph)
        own = {id(node) for node in nodes}

        def number(value: ir.Value | None) -> None:
            if value is None or id(value) in index or _is_absent(value):
                return
            producer = value.producer()
            if producer is not None and id(producer) not in own:
                raise ModelError(
                    f"{value.name} is used but {producer.op_type}, which makes it, is not in the graph"
                )
            index[id(value)] = len(values)
            values.append(value)

        for value in (*graph.inputs, *graph.initializers.values()):
            number(value)
        for node in nodes:
            for value in (*node.inputs, *node.outputs, *node.meta.get("intermediates", ())):
                number(value)
        for value in (*graph.outputs, *graph.meta.get("loose", ())):
            number(value)
        for value in values:  # which grows on the way
            for other in value.meta.get("references", {}).values():
                number(other)
        self.tensors = [self._tensor(value, index) for value in values]
        return index

    def _tensor(self, value: ir.Value, index: dict[int, int]) -> Any:
        table = self.dialect.table("Tensor")()
        name, raw_name = value.meta.get("name", (None, None))
        table.name = raw_name if value.name == name else value.name
        if value.shape is not None:
            table.shape = _ints(list(value.shape.numpy()))
        if value.dtype is not None:
            if value.dtype not in self.dialect.dtype_codes:
                raise ModelError(f"{value.name}: {self.dialect.name} has no tensor type {value.dtype}")
            table.type = self.dialect.dtype_codes[value.dtype]
        if value.const_value is not None:
            key = storage_key(value.const_value)
            if key not in self.buffer_of:
                self.buffer_of[key] = self._payload(value.const_value)
                if isinstance(value.const_value, Reference):
                    self.references[self.buffer_of[key]] = value.const_value
            table.buffer = self.buffer_of[key]
        fields = value.meta.get("fields", {})
        if value.shape:  # a scalar's shape may be absent; this one is none (any more)
            fields = {key: item for key, item in fields.items() if (key, item) != ("shape", None)}
        self._set_fields(table, fields)
        if "type" in fields and fields["type"] not in self.dialect.enum("TensorType").values():
            raise ModelError(f"{value.name}: {self.dialect.name} has no tensor type {fields['type']}")
        for field, other in value.meta.get("references", {}).items():
            setattr(table.quantization.details, field, index[id(other)])
        return table

    def _operator(self, node: ir.Node, index: dict[int, int]) -> Any:
        table = self.dialect.table("Operator")()
        custom = node.domain == CUSTOM_DOMAIN
        key = ("CUSTOM" if custom else node.op_type, node.op_type if custom else "", _version(node))
        table.opcodeIndex = self.opcode_of.setdefault(key, len(self.opcode_of))
        table.inputs = _ints([-1 if value is None else index[id(value)] for value in node.inputs])
        table.outputs = _ints([-1 if _is_absent(value) else index[id(value)] for value in node.outputs])
        self._set_options(table, node, key[0])
        if "intermediates" in node.meta:
            table.intermediates = _ints([index[id(value)] for value in node.meta["intermediates"]])
        self._set_fields(table, _without_options(node.meta.get("fields", {})))
        return table

    def _operator_code(self, operator: str, custom_code: str, version: int) -> Any:
        if operator not in self.dialect.operator_codes:
            raise ModelError(f"{self.dialect.name} has no operator {operator}")
        table = self.dialect.table("OperatorCode")()
        table.builtinCode = self.dialect.operator_codes[operator]
        table.deprecatedBuiltinCode = min(table.builtinCode, 127)
        table.customCode = custom_code or None
        table.version = version
        return table

    def _set_options(self, table: Any, node: ir.Node, operator: str) -> None:
        name = node.meta.get("options", self.dialect.options_table(operator))
        if name is None:
            return
        options = self.dialect.table(name)()
        known = vars(options)
        names = {self.dialect.ir_field(name, field): field for field in known}
        for attribute in node.attributes.values():
            if attribute.name not in names:
                raise ModelError(
                    f"{node.op_type}: {self.dialect.name} has no option {attribute.name} in {name}"
                )
            field = names[attribute.name]
            setattr(options, field, self._option(name, field, attribute, known[field]))
        for key, item in node.meta.get("fields", {}).items():
            if key.startswith("options."):
                self._set_fields(options, {key.removeprefix("options."): item})
        union = "builtinOptions" if name in self.dialect.unions["BuiltinOptions"] else "builtinOptions2"
        setattr(table, union, options)
        setattr(table, f"{union}Type", self.dialect.unions[union[0].upper() + union[1:]][name])

    def _option(self, table: str, field: str, attribute: ir.Attr, default: Any) -> Any:
        value = attribute.value
        if (table, field) in SUBGRAPH_FIELDS and attribute.type == ir.AttributeType.GRAPH:
            return self.graph_index[id(value)]
        if (table, field) in SUBGRAPH_FIELDS and attribute.type == ir.AttributeType.GRAPHS:
            return _ints([self.graph_index[id(graph)] for graph in value])
        if isinstance(default, bool):
            return bool(value)
        if attribute.type == ir.AttributeType.INTS:
            return list(value)
        if attribute.type == ir.AttributeType.FLOATS:
            return list(value)
        return value

    def _signature(self, signature: Signature) -> Any:
        table = self.dialect.table("SignatureDef")()
        table.signatureKey = signature.name
        table.subgraphIndex = self.graph_index[id(signature.graph)]
        index = self.tensor_index[table.subgraphIndex]

        def mapping(name: str, value: ir.Value) -> Any:
            entry = self.dialect.table("TensorMap")()
            entry.name = name
            entry.tensorIndex = index[id(value)]
            return entry

        table.inputs = [mapping(name, value) for name, value in signature.inputs.items()]
        table.outputs = [mapping(name, value) for name, value in signature.outputs.items()]
        return table

    def _metadata(self, name: str, data: bytes) -> Any:
        table = self.dialect.table("Metadata")()
        table.name = name
        table.buffer = self._payload(data)
        return table

    def _set_fields(self, table: Any, fields: dict[str, Any]) -> None:
        known = vars(table)
        for key, value in fields.items():
            if key not in known:
                what = f"{type(table).__name__[:-1]}.{key}"
                raise ModelError(f"{self.dialect.name} cannot hold {what}, which this model uses")
            setattr(table, key, self._adopt(value))

    def _adopt(self, value: Any) -> Any:
        """`value` with every generated table in it rebuilt as this dialect's own, unions renumbered."""
        if isinstance(value, list):
            return [self._adopt(item) for item in value]
        if isinstance(value, (np.ndarray, bytes, str)) or not hasattr(value, "__dict__"):
            return value
        own = self.dialect.table(type(value).__name__[:-1])()
        default = vars(type(value)())
        self._set_fields(
            own,
            {key: item for key, item in vars(value).items() if key in vars(own) or item is not default[key]},
        )
        if getattr(own, "details", None) is not None:
            own.detailsType = self.dialect.unions["QuantizationDetails"][type(own.details).__name__[:-1]]
        return own


def _ints(values: list[int]) -> np.ndarray:
    return np.asarray(values, np.int32)


def _version(node: ir.Node) -> int:
    return 1 if node.version is None else node.version


def _is_absent(value: ir.Value) -> bool:
    return value.name == ""


def _without_options(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if not key.startswith("options.")}
