"""ONNX models as files. Large weights are streamed, one at a time, and never in memory together.

Under a name, large tensors go into a file beside it (`FILE.data`, each from a page's beginning on, so that it
can be mapped); to a pipe goes one file with all of them in it, which may not be larger than 2 GiB.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import onnx
import onnx_ir as ir

from o2o.errors import ModelError
from o2o.formats.tensors import StreamedTensor, pieces, source_tensors
from o2o.streams import open_output

LARGE = 1 << 14  # bytes from which a tensor goes into the file beside
PAGE = 4096
LIMIT = (1 << 31) - 1  # bytes of a protobuf message
CHUNK = 1 << 22


def write(model: ir.Model, path: str | os.PathLike[str]) -> None:
    """Write `model` to the file at `path`, and its large tensors to `path`.data; both appear when they are
    complete. To a pipe or a device goes all of it. Raises ModelError, OSError."""
    target = Path(path).resolve()  # through a symbolic link, not over it
    large = _large(model)
    if (target.exists() and not target.is_file()) or not large:
        with open_output(path) as sink:
            stream(model, sink)
        return
    beside = target.with_name(f"{target.name}.data")
    places, size = _places(large)
    with _external(large, beside.name, places):
        told = ir.to_proto(model).SerializeToString(deterministic=True)
    with open_output(target, len(told)) as graph, open_output(beside, size) as data:
        position = 0
        _keep(large)
        for value, place in zip(large, places, strict=True):
            data.write(bytes(place - position))
            _copy(_tensor(value), data)
            position = place + _tensor(value).nbytes
        graph.write(told)


def stream(model: ir.Model, sink: BinaryIO) -> None:
    """Write all of `model` to `sink`, front to back. Raises ModelError when it is too large for one file."""
    large = _large(model)
    size = sum(_tensor(value).nbytes for value in large)
    with _external(large, "data", [0] * len(large)):
        proto = ir.to_proto(model)
    names = {value.name for value in large}
    behind = [tensor for tensor in proto.graph.initializer if tensor.name in names]
    inside = [tensor for tensor in proto.graph.initializer if tensor.name not in names]
    headers = [_header(tensor) for tensor in behind]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(inside)
    graph = proto.graph.SerializeToString(deterministic=True)
    proto.ClearField("graph")
    # Protobuf by hand: a message is its fields in any order, one with a length is number, length, bytes.
    parts = []
    for header, value in zip(headers, large, strict=True):
        nbytes = _tensor(value).nbytes
        start = header + _field(_RAW_DATA, nbytes)
        parts.append(_field(_INITIALIZER, len(start) + nbytes) + start)
    length = len(graph) + sum(map(len, parts)) + size
    start = proto.SerializeToString(deterministic=True) + _field(_GRAPH, length)
    if len(start) + length > LIMIT:
        raise ModelError(
            f"the model takes {len(start) + length:,} bytes, of which ONNX holds {LIMIT:,} in one file: "
            "-o FILE writes its weights beside it"
        )
    _keep(large)
    sink.write(start + graph)
    for part, value in zip(parts, large, strict=True):
        sink.write(part)
        _copy(_tensor(value), sink)


_GRAPH = onnx.ModelProto.GRAPH_FIELD_NUMBER
_INITIALIZER = onnx.GraphProto.INITIALIZER_FIELD_NUMBER
_RAW_DATA = onnx.TensorProto.RAW_DATA_FIELD_NUMBER


def _header(tensor: onnx.TensorProto) -> bytes:
    """The tensor without its data."""
    bare = onnx.TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
    return bare.SerializeToString(deterministic=True)


def _field(number: int, length: int) -> bytes:
    """The beginning of a field of that many bytes."""
    return _varint(number << 3 | 2) + _varint(length)


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def _large(model: ir.Model) -> list[ir.Value]:
    return [value for value in model.graph.initializers.values() if _tensor(value).nbytes >= LARGE]


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None
    return value.const_value


def _places(large: list[ir.Value]) -> tuple[list[int], int]:
    """Where each begins, and where all end."""
    places = []
    end = 0
    for value in large:
        start = -(-end // PAGE) * PAGE
        places.append(start)
        end = start + _tensor(value).nbytes
    return places, end


@contextmanager
def _external(large: list[ir.Value], location: str, places: list[int]) -> Iterator[None]:
    """Let these tensors be told as lying in the file `location`."""
    tensors = [_tensor(value) for value in large]
    try:
        for value, tensor, place in zip(large, tensors, places, strict=True):
            shape = ir.Shape(tensor.shape.numpy())
            value.const_value = ir.ExternalTensor(
                location, place, tensor.nbytes, tensor.dtype, shape=shape, name=value.name or ""
            )
        yield
    finally:
        for value, tensor in zip(large, tensors, strict=True):
            value.const_value = tensor


def _keep(large: list[ir.Value]) -> None:
    """Constants that come through a pipe are needed in another order than they come in."""
    for value in large:
        for part in source_tensors(_tensor(value)):
            part.source.spool()


def _copy(tensor: ir.TensorProtocol, sink: BinaryIO) -> None:
    if isinstance(tensor, StreamedTensor):
        tensor.tofile(sink)
        return
    for piece in pieces(tensor, CHUNK):
        sink.write(piece)
