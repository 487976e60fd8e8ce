"""File formats: Circle, TFLite and ONNX models are read and written here.

Other packages work on `o2o.model`. They read the schema only through `schema.DIALECTS`, for codes
of dtypes and for default fields.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Sequence
from typing import BinaryIO

from o2o.formats import onnx_reader, onnx_writer, reader, writer
from o2o.formats.protobuf_wire import is_onnx_model
from o2o.formats.schema import is_flatbuffer
from o2o.formats.writer import Plan
from o2o.litertlm import is_bundle
from o2o.model import Model
from o2o.streams import MemorySource, Source, open_file, open_output

__all__ = ["dumps", "load", "loads", "plan", "read", "save", "write"]


def read(source: Source) -> Model:
    """Read a model of any format, which its first bytes or its fields tell apart.

    Args:
        source: The bytes of the file. It must outlive the model, which reads constants on demand.

    Returns:
        The model.

    Raises:
        ModelError: The file is truncated, damaged or has another format.
    """
    header = source.header
    is_onnx = not (is_bundle(header) or is_flatbuffer(header)) and is_onnx_model(header)
    return onnx_reader.read(source) if is_onnx else reader.read(source)


def plan(model: Model, limit: int = writer.FLATBUFFER_LIMIT) -> Plan:
    """Lay out the file of a model. Constants are neither read nor copied.

    Args:
        model: The model.
        limit: The size in bytes beyond which Circle and TFLite store large constants by offset and size.

    Returns:
        The layout. External data of ONNX stays in its files.

    Raises:
        ModelError: The model cannot be written in its format.
    """
    return onnx_writer.plan(model) if model.format == "onnx" else writer.plan(model, limit)


def write(model: Model, sink: BinaryIO, limit: int = writer.FLATBUFFER_LIMIT) -> int:
    """Write a model, front to back.

    Args:
        model: The model.
        sink: A binary file; it need not be seekable.
        limit: See `plan`.

    Returns:
        The number of bytes written.

    Raises:
        ModelError: The model cannot be written, or a source ends early.
        OSError: The sink cannot be written.
    """
    planned = plan(model, limit)
    planned.write(sink)
    return planned.size


def load(path: str | os.PathLike[str]) -> Model:
    """Read a model file. Its large constants stay in the file until they are needed.

    Args:
        path: A Circle, TFLite or ONNX file.

    Returns:
        The model.

    Raises:
        ModelError: The file is damaged or has another format.
        OSError: The file cannot be read.
    """
    return read(open_file(path))


def loads(data: bytes | bytearray | memoryview) -> Model:
    """Read a model from memory. Its constants are views of `data`.

    Args:
        data: The bytes of a Circle, TFLite or ONNX file.

    Returns:
        The model.

    Raises:
        ModelError: The bytes are damaged or have another format.
    """
    return read(MemorySource(data))


def save(model: Model, path: str | os.PathLike[str] | None, sources: Sequence[Source] = ()) -> None:
    """Write a model to a file, which appears or changes only when it is complete, or to stdout.

    External data of ONNX is copied to `path`.data. On stdout it stays in its files.

    Args:
        model: The model.
        path: The file; None for stdout.
        sources: The input, if nothing else reads it afterwards. Data in a pipe is passed on then.

    Raises:
        ModelError: The model cannot be written in its format.
        OSError: The file cannot be written.
    """
    planned = onnx_writer.plan_files(model, path) if model.format == "onnx" else {path: plan(model)}
    with contextlib.ExitStack() as stack:
        sinks = [stack.enter_context(open_output(file, one.size)) for file, one in planned.items()]
        for sink, one in reversed(list(zip(sinks, planned.values(), strict=True))):
            one.write(sink, consume_sources=bool(sources))
        for source in sources:
            source.finish()


def dumps(model: Model) -> bytes:
    """Return a model as bytes. For small models: the whole file is in memory.

    Args:
        model: The model.

    Returns:
        The bytes of a Circle, TFLite or ONNX file.

    Raises:
        ModelError: The model cannot be written in its format.
    """
    sink = io.BytesIO()
    write(model, sink)
    return sink.getvalue()
