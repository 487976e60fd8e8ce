"""External tensors: the model's file records where the bytes of these constants are, but does not hold them.

A model with external tensors takes kilobytes for gigabytes of weights. The record is JSON metadata of the
file, under the name `o2o.weights`, keyed by the number of the (empty) buffer:

    {"version": 1, "files": ["/models/a/model.safetensors"], "unused": [{"lm_head.weight": ""}],
     "buffers": {"7": {"file": 0, "tensor": "model.norm.weight", "shape": [2048]}, ...}}

`unused` lists, for each file, the tensors without a reference. The value is "" for a tensor that the model
does not need. Otherwise the tensor's numbers are in the model, and the value is their digest
(`o2o.weights.weight_source.WeightSource.digest`).

A buffer with `"transposed": true` holds the transposed matrix (GPT-2 stores its linear layers so). One with
`"added": 1.0` holds the numbers plus 1 (Gemma's norms multiply by 1 + weight). Such a record has version 2.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from o2o import metadata
from o2o.errors import ModelError
from o2o.formats.tensors import CHUNK, StreamedTensor

METADATA_NAME = "o2o.weights"
VERSION = 2


class UnboundTensor(StreamedTensor):
    """A constant whose bytes are a tensor of another file. `o2o.weights.binding` reads them."""

    def __init__(
        self,
        name: str,
        path: Path,
        tensor_name: str,
        dtype: ir.DataType,
        stored_shape: tuple[int, ...],
        shape: tuple[int, ...] | None = None,
        added: float = 0.0,
        transposed: bool = False,
    ) -> None:
        """Refer to a tensor of a checkpoint.

        Args:
            name: The name of the constant.
            path: The checkpoint's file.
            tensor_name: The name of the tensor in that file.
            dtype: The dtype of the constant; the file may store another one.
            stored_shape: The shape of the tensor in the file.
            shape: The shape of the constant; None for `stored_shape`, reversed if it is transposed.
            added: A number that is added to each element.
            transposed: Whether the constant holds the transposed matrix.

        Raises:
            ModelError: The two shapes differ in their number of elements.
        """
        if shape is None:
            shape = stored_shape[::-1] if transposed else stored_shape
        if math.prod(shape) != math.prod(stored_shape):
            raise ModelError(f"{name} is {list(shape)} but refers to {tensor_name}, {list(stored_shape)}")
        super().__init__(dtype, shape, name)
        self.path, self.tensor_name, self.stored_shape = path, tensor_name, stored_shape
        self.added, self.transposed = added, transposed

    @property
    def key(self) -> Hashable:
        return self.path, self.tensor_name, self.dtype, self.added, self.transposed

    def chunks(self, size: int = CHUNK) -> Iterator[bytes | memoryview]:
        raise ModelError(
            f"{self.name} is not in the model but in {self.path}: run bind.weights.py before this command"
        )

    def with_shape(self, shape: tuple[int, ...], name: str) -> UnboundTensor:
        return self._changed(name, shape, self.added, self.transposed)

    def plus(self, number: float, name: str) -> UnboundTensor:
        """Return a tensor whose elements are larger by a number.

        Args:
            number: The number.
            name: The name of the new tensor.

        Returns:
            A reference to the same stored tensor.
        """
        return self._changed(name, tuple(self.shape.numpy()), self.added + number, self.transposed)

    @property
    def is_matrix(self) -> bool:
        """Whether it has the axes of a stored matrix."""
        axes = self.stored_shape[::-1] if self.transposed else self.stored_shape
        return len(axes) == 2 and tuple(self.shape.numpy()) == axes

    def transpose(self, name: str) -> UnboundTensor:
        """Return the transposed matrix.

        Args:
            name: The name of the new tensor.

        Returns:
            A reference to the same stored tensor.

        Raises:
            ModelError: The stored tensor is no matrix of this tensor's shape.
        """
        if not self.is_matrix:
            raise ModelError(f"{self.name} {list(self.shape)} cannot be transposed: bind its weights first")
        return self._changed(name, tuple(self.shape.numpy())[::-1], self.added, not self.transposed)

    def _changed(self, name: str, shape: tuple[int, ...], added: float, transposed: bool) -> UnboundTensor:
        stored = self.path, self.tensor_name, self.dtype, self.stored_shape
        return UnboundTensor(name, *stored, shape, added, transposed)


def dumps(tensors: Mapping[int, UnboundTensor], unused: Mapping[str, Mapping[str, str]]) -> bytes | None:
    """Return the metadata entry that records external tensors.

    Args:
        tensors: The external tensors, by the number of their buffer.
        unused: For each file, the tensors without a reference and their digests (see the module).

    Returns:
        JSON; None for a model without external tensors.
    """
    if not tensors:
        return None
    files = list(dict.fromkeys([*(str(tensor.path) for tensor in tensors.values()), *unused]))
    record = {
        "version": VERSION if any(t.added or t.transposed for t in tensors.values()) else 1,
        "files": files,
        "unused": [dict(sorted(unused.get(file, {}).items())) for file in files],
        "buffers": {
            str(index): {
                "file": files.index(str(tensor.path)),
                "tensor": tensor.tensor_name,
                "shape": list(tensor.stored_shape),
                **({"added": tensor.added} if tensor.added else {}),
                **({"transposed": True} if tensor.transposed else {}),
            }
            for index, tensor in tensors.items()
        },
    }
    return json.dumps(record, separators=(",", ":")).encode()


def loads(data: bytes) -> tuple[dict[int, dict[str, Any]], dict[str, dict[str, str]]]:
    """Parse the metadata entry that `dumps` returns.

    Args:
        data: The JSON.

    Returns:
        By buffer number, the arguments `path`, `tensor_name`, `stored_shape`, `added` and `transposed` of
        an `UnboundTensor`; and the unused tensors of each file.

    Raises:
        ModelError: The JSON is damaged, or its version is newer than this program.
    """
    record = metadata.parse(METADATA_NAME, data, VERSION)
    with metadata.reports_damage(METADATA_NAME):
        buffers = {
            int(index): {
                "path": Path(record["files"][entry["file"]]),
                "tensor_name": str(entry["tensor"]),
                "stored_shape": tuple(int(dim) for dim in entry["shape"]),
                "added": float(entry.get("added", 0)),
                "transposed": bool(entry.get("transposed", False)),
            }
            for index, entry in record["buffers"].items()
        }
        unused = zip(record["files"], record["unused"], strict=True)
        return buffers, {file: dict(names.items()) for file, names in unused if names}
