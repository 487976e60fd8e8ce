"""What the runtime reads of an ONNX file itself: its metadata, and whether it names files of external data.

The packages `onnx` and `onnx_ir` parse the graph, and take longer to import than a small model to load.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from o2o.streams.protobuf_fields import LENGTH_DELIMITED, fields

_METADATA_PROPS = 14  # of ModelProto
_KEY, _VALUE = 1, 2  # of StringStringEntryProto
_MAX_SEARCHED = 64_000_000  # bytes, which take 10 ms


def read_metadata(file: Path) -> dict[str, str]:
    """Return the metadata of a file.

    Args:
        file: An ONNX file.

    Returns:
        Its `metadata_props`.

    Raises:
        ModelError: It is truncated or damaged.
        OSError: It cannot be read.
    """
    metadata = {}
    with _mapped(file) as mapped, memoryview(mapped) as data:
        for field in fields(data, 0, len(data)):
            if (field.number, field.wire_type) == (_METADATA_PROPS, LENGTH_DELIMITED):
                entry = {
                    inner.number: bytes(data[inner.value : inner.end]).decode(errors="replace")
                    for inner in fields(data, field.value, field.end)
                }
                metadata[entry.get(_KEY, "")] = entry.get(_VALUE, "")
    return metadata


def may_have_external_data(file: Path) -> bool:
    """Return whether a file may name files of external data.

    Args:
        file: An ONNX file.

    Returns:
        Whether it has the key of such names. True for a large file, which is not searched.

    Raises:
        OSError: It cannot be read.
    """
    if file.stat().st_size > _MAX_SEARCHED:
        return True
    with _mapped(file) as mapped:
        return mapped.find(b"location") >= 0


@contextmanager
def _mapped(file: Path) -> Iterator[mmap.mmap]:
    """The bytes of a file; one byte for an empty file, which is no ONNX model."""
    with open(file, "rb") as opened:
        if file.stat().st_size:
            mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        else:
            mapped = mmap.mmap(-1, 1)
        with mapped:
            yield mapped
