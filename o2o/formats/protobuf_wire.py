"""Large tensor data in the wire format of an ONNX file: cut out of the message, and put back.

A parser of protobuf copies all data into memory. Here the data stays in the file. The message is parsed
without it. In each tensor a reference stands in its place, written as external data of the file `MARK`:

    ModelProto > GraphProto > TensorProto { dims, name, raw_data: 4 MB }
        =>  TensorProto { dims, name, external_data: location MARK, offset 7 }     and 4 MB at byte 1,234

Messages are walked by their field numbers alone. Fields that are no path to a tensor are copied as they are.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

import onnx

from o2o.errors import ModelError
from o2o.streams.protobuf_fields import LENGTH_DELIMITED, Field, fields

MARK = f"o2o:{uuid.uuid4().hex}"
"""The location of data that was cut out. No file can contain it: each process has its own."""

_MARK = MARK.encode()
_RAW_DATA = onnx.TensorProto.RAW_DATA_FIELD_NUMBER
_EXTERNAL = {
    onnx.TensorProto.EXTERNAL_DATA_FIELD_NUMBER,
    onnx.TensorProto.DATA_LOCATION_FIELD_NUMBER,
}
_MODEL_FIELDS = set(onnx.ModelProto.DESCRIPTOR.fields_by_number)
_VERSION = onnx.ModelProto.IR_VERSION_FIELD_NUMBER << 3  # the tag of a number
_HIGHEST_VERSION = 64

Kind = str
"""The name of a message type."""


def _paths() -> dict[Kind, dict[int, Kind]]:
    """For each message on the way to a tensor: the fields that lead there, and their types."""
    paths: dict[Kind, dict[int, Kind]] = {
        "ModelProto": {onnx.ModelProto.GRAPH_FIELD_NUMBER: "GraphProto"},
        "GraphProto": {
            onnx.GraphProto.NODE_FIELD_NUMBER: "NodeProto",
            onnx.GraphProto.INITIALIZER_FIELD_NUMBER: "TensorProto",
        },
        "FunctionProto": {onnx.FunctionProto.NODE_FIELD_NUMBER: "NodeProto"},
        "NodeProto": {onnx.NodeProto.ATTRIBUTE_FIELD_NUMBER: "AttributeProto"},
        "AttributeProto": {
            onnx.AttributeProto.T_FIELD_NUMBER: "TensorProto",
            onnx.AttributeProto.TENSORS_FIELD_NUMBER: "TensorProto",
            onnx.AttributeProto.G_FIELD_NUMBER: "GraphProto",
            onnx.AttributeProto.GRAPHS_FIELD_NUMBER: "GraphProto",
        },
        "TensorProto": {},
    }
    paths["ModelProto"][onnx.ModelProto.FUNCTIONS_FIELD_NUMBER] = "FunctionProto"
    return paths


_PATHS = _paths()


class Range(NamedTuple):
    """Bytes of a file."""

    start: int
    size: int


def is_onnx_model(data: memoryview) -> bool:
    """Return whether a file is an ONNX `ModelProto`, by its fields. Their contents are not looked at.

    Args:
        data: The file.

    Returns:
        True if it begins with the version of the IR and another field of a model, as programs write it. True
        also if all of it are fields of a model, and one is the graph.
    """
    if bytes(data[6:9]) == b"\0\0{":  # safetensors: the length of the header, then JSON
        return False
    if len(data) >= 2 and data[0] == _VERSION and 0 < data[1] < _HIGHEST_VERSION:
        return len(data) == 2 or data[2] >> 3 in _MODEL_FIELDS
    numbers = set()
    try:
        for field in fields(data, 0, len(data)):
            numbers.add(field.number)
            if field.number not in _MODEL_FIELDS:
                return False
    except ModelError:
        return False
    return onnx.ModelProto.GRAPH_FIELD_NUMBER in numbers


def cut(data: memoryview, smallest: int) -> tuple[bytes, list[Range]]:
    """Cut the data of large tensors out of a model.

    Args:
        data: The file of a model.
        smallest: Bytes of a tensor from which its data is cut out.

    Returns:
        The message without that data, and the place of each piece of data in the file.

    Raises:
        ModelError: The message is truncated or damaged.
    """
    ranges: list[Range] = []

    def tensor(field: Field) -> list[Any] | None:
        raw = None
        for inner in fields(data, field.value, field.end):
            if inner.number == _RAW_DATA and inner.wire_type == LENGTH_DELIMITED:
                raw = inner
        if raw is None or raw.end - raw.value < smallest:
            return None
        ranges.append(Range(raw.value, raw.end - raw.value))
        reference = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
        reference.external_data.add(key="location", value=MARK)
        reference.external_data.add(key="offset", value=str(len(ranges) - 1))
        return [data[field.value : raw.start], data[raw.end : field.end], reference.SerializeToString()]

    pieces = _edited(data, "ModelProto", 0, len(data), tensor, lambda f: f.end - f.value >= smallest)
    return b"".join(pieces), ranges


def paste(message: bytes, payload: Callable[[int], tuple[Any, int]]) -> list[Any]:
    """Put the data of tensors back into a model.

    Args:
        message: The model with references, serialized by protobuf.
        payload: Returns the data of a reference by its number: an object that stands for it, and its size.

    Returns:
        The parts of the file in order: bytes, and the objects from `payload`.
    """

    def tensor(field: Field) -> list[Any] | None:
        if message.find(_MARK, field.value, field.end) < 0:
            return None
        inner = list(fields(message, field.value, field.end))
        proto = onnx.TensorProto.FromString(message[field.value : field.end])
        reference = {entry.key: entry.value for entry in proto.external_data}
        if reference.get("location") != MARK:
            return None
        data, size = payload(int(reference["offset"]))
        before = [message[f.start : f.end] for f in inner if f.number < _RAW_DATA]
        behind = [
            message[f.start : f.end] for f in inner if f.number > _RAW_DATA and f.number not in _EXTERNAL
        ]
        return [*before, _start(_RAW_DATA, size), _Sized(data, size), *behind]

    def is_marked(field: Field) -> bool:
        return message.find(_MARK, field.value, field.end) >= 0

    parts: list[Any] = []
    for piece in _edited(message, "ModelProto", 0, len(message), tensor, is_marked):
        if isinstance(piece, _Sized):
            parts.append(piece.content)
        elif parts and isinstance(parts[-1], bytearray):
            parts[-1] += piece
        else:
            parts.append(bytearray(piece))
    return [bytes(part) if isinstance(part, bytearray) else part for part in parts]


class _Sized:
    """An object that stands for bytes."""

    def __init__(self, content: Any, size: int) -> None:
        self.content, self.size = content, size

    def __len__(self) -> int:
        return self.size


def _edited(
    data: memoryview | bytes,
    kind: Kind,
    start: int,
    end: int,
    tensor: Callable[[Field], list[Any] | None],
    is_entered: Callable[[Field], bool],
) -> list[Any]:
    """The parts of a message, in which `tensor` has replaced the contents of tensors."""
    pieces: list[Any] = []
    copied = start
    for field in fields(data, start, end):
        inner = _PATHS[kind].get(field.number)
        if inner is None or field.wire_type != LENGTH_DELIMITED or not is_entered(field):
            continue
        if inner == "TensorProto":
            contents = tensor(field)
        else:
            contents = _edited(data, inner, field.value, field.end, tensor, is_entered)
        if contents is None or len(contents) == 1:
            continue
        pieces += [data[copied : field.start], _start(field.number, sum(map(len, contents))), *contents]
        copied = field.end
    return [*pieces, data[copied:end]]


def _start(number: int, length: int) -> bytes:
    """The tag and the length of a length-delimited field."""
    return _encoded(number << 3 | LENGTH_DELIMITED) + _encoded(length)


def _encoded(number: int) -> bytes:
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    return bytes([*encoded, number])
