"""Writer of ONNX files. Large weights are streamed, one at a time.

A file gets its large tensors as external data in `FILE.data`, each aligned to a page so that it can be
mapped. A pipe gets one self-contained model of at most 2 GiB.

`onnx_ir.save(external_data=...)` is not used. It replaces the data file before it writes the graph. A failure
between the two leaves a graph with the weights of another model. Nor can it write to a pipe. Here both files
appear together, when both are complete.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import onnx
import onnx_ir as ir

from o2o.cli.progress import LONG, progress
from o2o.errors import ModelError
from o2o.formats.tensors import source_tensors
from o2o.formats.tensors import stream as stream_tensor
from o2o.streams import open_output

LARGE = 1 << 14
"""Bytes from which a tensor becomes external data."""
PAGE = 4096
LIMIT = (1 << 31) - 1
"""Bytes of a protobuf message."""


def write(model: ir.Model, path: str | os.PathLike[str]) -> None:
    """Write a model to a file, and its large tensors to `path`.data.

    A pipe or device gets the whole model, as `stream` writes it.

    Args:
        model: The model.
        path: The file. A symbolic link is followed.

    Raises:
        ModelError: The model is too large for a pipe.
        OSError: A file cannot be written. Neither file is replaced then.
    """
    target = Path(path).resolve()
    large = _large_values(model)
    if (target.exists() and not target.is_file()) or not large:
        with open_output(path) as sink:
            stream(model, sink)
        return
    data_path = target.with_name(f"{target.name}.data")
    offsets, size = _offsets(large)
    with _external(large, data_path.name, offsets):
        graph_bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    with open_output(target, len(graph_bytes)) as graph, open_output(data_path, size) as data:
        position = 0
        _retain_sources(large)
        with progress("write", size, shown=size >= LONG) as advance:
            for value, offset in zip(large, offsets, strict=True):
                data.write(bytes(offset - position))
                stream_tensor(_tensor(value), data)
                end = offset + _tensor(value).nbytes
                advance(end - position)
                position = end
        graph.write(graph_bytes)


def stream(model: ir.Model, sink: BinaryIO) -> None:
    """Write a self-contained model, front to back.

    Args:
        model: The model.
        sink: Where to write.

    Raises:
        ModelError: The model is larger than a protobuf message can be.
    """
    large = _large_values(model)
    size = sum(_tensor(value).nbytes for value in large)
    with _external(large, "data", [0] * len(large)):
        proto = ir.to_proto(model)
    names = {value.name for value in large}
    large_protos = [tensor for tensor in proto.graph.initializer if tensor.name in names]
    small_protos = [tensor for tensor in proto.graph.initializer if tensor.name not in names]
    headers = [_header(tensor) for tensor in large_protos]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(small_protos)
    graph = proto.graph.SerializeToString(deterministic=True)
    proto.ClearField("graph")
    # The wire format of protobuf: fields may come in any order, and repeated fields in parts. So the large
    # initializers are appended to the serialized graph.
    prefixes = []
    for header, value in zip(headers, large, strict=True):
        nbytes = _tensor(value).nbytes
        start = header + _field_start(_RAW_DATA, nbytes)
        prefixes.append(_field_start(_INITIALIZER, len(start) + nbytes) + start)
    length = len(graph) + sum(map(len, prefixes)) + size
    start = proto.SerializeToString(deterministic=True) + _field_start(_GRAPH, length)
    if len(start) + length > LIMIT:
        raise ModelError(
            f"the model takes {len(start) + length:,} bytes, and one ONNX file holds at most {LIMIT:,}: "
            "-o FILE writes the weights to a second file, FILE.data"
        )
    _retain_sources(large)
    sink.write(start + graph)
    for prefix, value in zip(prefixes, large, strict=True):
        sink.write(prefix)
        stream_tensor(_tensor(value), sink)


_GRAPH = onnx.ModelProto.GRAPH_FIELD_NUMBER
_INITIALIZER = onnx.GraphProto.INITIALIZER_FIELD_NUMBER
_RAW_DATA = onnx.TensorProto.RAW_DATA_FIELD_NUMBER


def _header(tensor: onnx.TensorProto) -> bytes:
    """The tensor without its data."""
    bare = onnx.TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
    return bare.SerializeToString(deterministic=True)


def _field_start(number: int, length: int) -> bytes:
    """The tag and the length of a length-delimited field."""
    return _varint(number << 3 | 2) + _varint(length)


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    return bytes([*encoded, number])


def _large_values(model: ir.Model) -> list[ir.Value]:
    return [value for value in model.graph.initializers.values() if _tensor(value).nbytes >= LARGE]


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None
    return value.const_value


def _offsets(large: list[ir.Value]) -> tuple[list[int], int]:
    """The offset of each tensor in the data file, and the size of that file."""
    offsets = []
    end = 0
    for value in large:
        offset = -(-end // PAGE) * PAGE
        offsets.append(offset)
        end = offset + _tensor(value).nbytes
    return offsets, end


@contextmanager
def _external(large: list[ir.Value], location: str, offsets: list[int]) -> Iterator[None]:
    """Replace tensors by external ones in the file `location`, for as long as the context lasts."""
    tensors = [_tensor(value) for value in large]
    try:
        for value, tensor, offset in zip(large, tensors, offsets, strict=True):
            shape = ir.Shape(tensor.shape.numpy())
            value.const_value = ir.ExternalTensor(
                location, offset, tensor.nbytes, tensor.dtype, shape=shape, name=value.name or ""
            )
        yield
    finally:
        for value, tensor in zip(large, tensors, strict=True):
            value.const_value = tensor


def _retain_sources(large: list[ir.Value]) -> None:
    """Make an input pipe retain its constants: they are written in another order than they arrive."""
    for value in large:
        for part in source_tensors(_tensor(value)):
            part.source.spool()
