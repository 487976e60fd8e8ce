"""File formats: Circle and TFLite models are read and written here, ONNX models written.

Other packages work on `o2o.model`. They read the schema only through `schema.DIALECTS`, for codes
of dtypes and for default fields.
"""

from __future__ import annotations

import io
import os

from o2o.formats.reader import read
from o2o.formats.writer import plan, write
from o2o.model import Model
from o2o.streams import MemorySource, open_file, open_output

__all__ = ["dumps", "load", "loads", "plan", "read", "save", "write"]


def load(path: str | os.PathLike[str]) -> Model:
    """Read a model file. Its large constants stay in the file until they are needed.

    Args:
        path: A Circle or TFLite file.

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
        data: The bytes of a Circle or TFLite file.

    Returns:
        The model.

    Raises:
        ModelError: The bytes are damaged or have another format.
    """
    return read(MemorySource(data))


def save(model: Model, path: str | os.PathLike[str]) -> None:
    """Write a model to a file, which appears or changes only when it is complete.

    Args:
        model: The model.
        path: The file.

    Raises:
        ModelError: The model cannot be written in its format.
        OSError: The file cannot be written.
    """
    planned = plan(model)
    with open_output(path, planned.size) as sink:
        planned.write(sink)


def dumps(model: Model) -> bytes:
    """Return a model as bytes. For small models: the whole file is in memory.

    Args:
        model: The model.

    Returns:
        The bytes of a Circle or TFLite file.

    Raises:
        ModelError: The model cannot be written in its format.
    """
    sink = io.BytesIO()
    write(model, sink)
    return sink.getvalue()
