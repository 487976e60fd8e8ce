"""Reading and writing models. The only place that knows of files, tensor numbers and operator codes."""

from __future__ import annotations

import io
import os

from o2o.formats.reader import read
from o2o.formats.writer import plan, write
from o2o.model import Model
from o2o.streams import MemorySource, open_file, open_output

__all__ = ["dumps", "load", "loads", "plan", "read", "save", "write"]


def load(path: str | os.PathLike[str]) -> Model:
    """The Circle or TFLite model in the file at `path`. Raises OSError, ModelError."""
    return read(open_file(path))


def loads(data: bytes | bytearray | memoryview) -> Model:
    """The Circle or TFLite model in `data`. Raises ModelError."""
    return read(MemorySource(data))


def save(model: Model, path: str | os.PathLike[str]) -> None:
    """Write `model` to the file at `path`, which is replaced only when that succeeded."""
    planned = plan(model)
    with open_output(path, planned.size) as sink:
        planned.write(sink)


def dumps(model: Model) -> bytes:
    """`model` as bytes, for small ones: nothing is streamed."""
    sink = io.BytesIO()
    write(model, sink)
    return sink.getvalue()
