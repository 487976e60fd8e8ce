"""Constants whose numbers are in a checkpoint: as a reference that travels with the graph, or about to be
written.

A `Reference` is written as what it is, so that a graph of gigabytes is a file of kilobytes. A `Weight` is
written as numbers, read from the checkpoint a few at a time and converted on the way.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import onnx_ir as ir

from o2o import metadata
from o2o.errors import ModelError
from o2o.streams.copying import EndsEarly, copy
from o2o.weights.stored_tensor import StoredTensor

METADATA_NAME = "o2o.weights"
VERSION = 1

# What a weight can become: the dtype that a checkpoint calls so, and numpy's.
DTYPES = {
    ir.DataType.FLOAT: ("F32", np.dtype(np.float32)),
    ir.DataType.FLOAT16: ("F16", np.dtype(np.float16)),
    ir.DataType.BFLOAT16: ("BF16", np.dtype(ml_dtypes.bfloat16)),
}


class Streamed(ir.LazyTensor):
    """A constant whose bytes are made while they are written, a few at a time (`pieces`, `tofile`)."""

    @property
    def key(self) -> Hashable:
        """Equal for two that become the same bytes."""
        raise NotImplementedError

    def pieces(self, size: int) -> Iterator[bytes | memoryview]:
        """The bytes, about `size` at a time."""
        raise NotImplementedError

    def with_shape(self, shape: tuple[int, ...], name: str) -> Streamed:
        """The same bytes in another shape. Raises ModelError where there is no such thing."""
        raise NotImplementedError


class Weight(Streamed):
    """The numbers of a checkpoint's tensor as `dtype`, read when they are written, a few at a time."""

    def __init__(
        self, name: str, stored: StoredTensor, dtype: ir.DataType, shape: tuple[int, ...] | None = None
    ) -> None:
        """Raises ModelError for a tensor that is not of floats, or a dtype that is none of DTYPES."""
        stored.check_float()
        if dtype not in DTYPES:
            raise ModelError(f"{name} is {dtype}: weights become {' or '.join(map(str, DTYPES))}")
        super().__init__(self._read, dtype, ir.Shape(stored.shape if shape is None else shape), name=name)
        self.stored = stored

    @property
    def key(self) -> Hashable:
        return self.stored.path, self.stored.offset, self.stored.length, self.dtype

    def _read(self) -> ir.TensorProtocol:
        numbers = self.stored.read_float32().reshape(self.shape.numpy()).astype(DTYPES[self.dtype][1])
        return ir.Tensor(numbers, self.dtype, name=self.name)

    def pieces(self, size: int = 4 << 20) -> Iterator[memoryview]:
        """The bytes, `size` at a time."""
        for piece in self.stored.pieces(size // DTYPES[self.dtype][1].itemsize):
            yield piece.astype(DTYPES[self.dtype][1], copy=False).view(np.uint8).data

    def tofile(self, file: BinaryIO) -> None:
        if DTYPES[self.dtype][0] != self.stored.dtype:
            for piece in self.pieces():
                file.write(piece)
            return
        with open(self.stored.path, "rb", buffering=0) as source:
            try:
                copy(source.fileno(), self.stored.offset, self.stored.length, file)
            except EndsEarly:
                raise ModelError(f"{self.stored.path}: it became shorter while it was read") from None

    def with_shape(self, shape: tuple[int, ...], name: str) -> Weight:
        return Weight(name, self.stored, self.dtype, shape)


class Reference(Streamed):
    """The tensor called `tensor`, of shape `stored_shape`, in the checkpoint's file at `path`."""

    def __init__(
        self,
        name: str,
        path: Path,
        tensor: str,
        dtype: ir.DataType,
        stored_shape: tuple[int, ...],
        shape: tuple[int, ...] | None = None,
    ) -> None:
        """shape: the constant's, `stored_shape` for None. Raises ModelError when they differ in size."""
        shape = stored_shape if shape is None else shape
        if math.prod(shape) != math.prod(stored_shape):
            raise ModelError(f"{name} is {list(shape)} but refers to {tensor}, {list(stored_shape)}")
        super().__init__(lambda: self.weight(), dtype, ir.Shape(shape), name=name)
        self.path, self.tensor, self.stored_shape = path, tensor, stored_shape

    @property
    def key(self) -> Hashable:
        return self.path, self.tensor, self.dtype

    def weight(self, found: StoredTensor | None = None) -> Weight:
        """What this stands for: `found`, or what is at `path`. Raises ModelError for a file or a tensor that
        is not there, or of another shape."""
        if found is None:
            tensors = tensors_in(self.path, self.name or self.tensor)
            if self.tensor not in tensors:
                raise ModelError(f"{self.path} lacks {self.tensor}, which the model refers to")
            found = tensors[self.tensor]
        if found.shape != self.stored_shape:
            there, here = list(found.shape), list(self.stored_shape)
            raise ModelError(f"{found.path} has {found.name} as {there}, the model as {here}")
        return Weight(self.name or self.tensor, found, self.dtype, tuple(self.shape.numpy()))

    def pieces(self, size: int = 4 << 20) -> Iterator[memoryview]:
        """The bytes of what this stands for, `size` at a time."""
        return self.weight().pieces(size)

    def tofile(self, file: BinaryIO) -> None:
        self.weight().tofile(file)

    def with_shape(self, shape: tuple[int, ...], name: str) -> Reference:
        return Reference(name, self.path, self.tensor, self.dtype, self.stored_shape, shape)


def tensors_in(path: Path, wanted: str) -> dict[str, StoredTensor]:
    """The tensors in a checkpoint's file, for `wanted`. Raises ModelError, OSError."""
    if not path.is_file():
        raise ModelError(
            f"{wanted} is in {path}, which is not there: bind.weights.py --checkpoint DIR tells where else"
        )
    told = path.stat()
    return _tensors_in(path, (told.st_size, told.st_mtime_ns))


@functools.cache
def _tensors_in(path: Path, version: tuple[int, int]) -> dict[str, StoredTensor]:
    """Read once, for the many that refer to one file; but anew when it is another `version` of it."""
    from o2o.weights import pytorch_file, safetensors

    return (safetensors if path.suffix == ".safetensors" else pytorch_file).read_header(path)


def dumps(references: dict[int, Reference], unused: Mapping[str, Mapping[str, str]]) -> bytes | None:
    """References by buffer, as they go into a model's file under METADATA_NAME; None when there are none.

    unused: by file, the tensors that nothing refers to: of those whose numbers are in the model the `digest`,
    of those that it does not need "".

        {"version": 1, "files": ["/models/a/model.safetensors"], "unused": [{"lm_head.weight": ""}],
         "buffers": {"7": {"file": 0, "tensor": "model.norm.weight", "shape": [2048]}, ...}}
    """
    if not references:
        return None
    files = list(dict.fromkeys([*(str(r.path) for r in references.values()), *unused]))
    told = {
        "version": VERSION,
        "files": files,
        "unused": [dict(sorted(unused.get(file, {}).items())) for file in files],
        "buffers": {
            str(index): {
                "file": files.index(str(reference.path)),
                "tensor": reference.tensor,
                "shape": list(reference.stored_shape),
            }
            for index, reference in references.items()
        },
    }
    return json.dumps(told, separators=(",", ":")).encode()


def loads(data: bytes) -> tuple[dict[int, dict[str, Any]], dict[str, dict[str, str]]]:
    """What `dumps` wrote: by buffer the `path`, `tensor` and `stored_shape` of a Reference; and the unused.

    Raises ModelError."""
    content = metadata.parse(METADATA_NAME, data, VERSION)
    with metadata.reports_damage(METADATA_NAME):
        files = content["files"]
        buffers = {
            int(index): {
                "path": Path(files[entry["file"]]),
                "tensor": str(entry["tensor"]),
                "stored_shape": tuple(int(dim) for dim in entry["shape"]),
            }
            for index, entry in content["buffers"].items()
        }
        return buffers, {
            f: dict(names.items()) for f, names in zip(files, content["unused"], strict=True) if names
        }
