"""Reader of the headers of GGUF files, llama.cpp's format: metadata, and where each tensor's bytes are.

A file begins with `GGUF`, a version (uint32), and the numbers of tensors and of metadata entries (uint64).
The metadata and the table of tensors follow. The data begin at the next multiple of the alignment. All
numbers are little endian. The reader of the package `gguf` takes 600 MB for the vocabulary of Llama 3. Here
vocabularies are passed over.
"""

from __future__ import annotations

import math
import mmap
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from o2o.errors import ModelError
from o2o.weights.gguf_tensor import GgufTensor
from o2o.weights.stored_tensor import StoredTensor

MAGIC = b"GGUF"
VERSIONS = (2, 3)
PLAIN = {"F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64"}
"""The types of tensors that are not quantized; safetensors has the same names."""

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_LONG_ARRAY = 1 << 14  # elements; longer arrays belong to a vocabulary


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file, without the data of its tensors.

    Attributes:
        path: The file.
        metadata: {key: value}. Arrays of numbers are lists. Arrays of strings and long ones are left out.
        tensors: The tensors by name, with the slowest axis first.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, StoredTensor | GgufTensor]

    @property
    def architecture(self) -> str:
        """The name of the architecture, as llama.cpp calls it."""
        return str(self.metadata["general.architecture"])

    def get(self, key: str, default: Any = None) -> Any:
        """Look up a metadata value of the architecture.

        Args:
            key: The key without the architecture, such as `block_count`.
            default: What to return without such a key.

        Returns:
            The value.
        """
        return self.metadata.get(f"{self.architecture}.{key}", default)


def is_gguf(path: Path) -> bool:
    """Check the first bytes of a file.

    Args:
        path: The file.

    Returns:
        Whether it is a GGUF file.

    Raises:
        OSError: The file cannot be read.
    """
    with open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def part_paths(path: Path) -> list[Path]:
    """List the files of a model that llama.cpp's `llama-gguf-split` has split, by the name of one part.

    Args:
        path: A GGUF file, such as `model-00002-of-00003.gguf`.

    Returns:
        The paths of all parts, the first one first; the path itself if its name is not that of a part.
    """
    match = _PART.fullmatch(path.name)
    if match is None or not 1 <= int(match[2]) <= int(match[3]):
        return [path]
    count = int(match[3])
    return [path.with_name(f"{match[1]}-{part:05}-of-{count:05}.gguf") for part in range(1, count + 1)]


def read_gguf(path: str | os.PathLike[str]) -> GgufFile:
    """Read a GGUF file's header, or those of all parts of a split one.

    Args:
        path: The file, or any part.

    Returns:
        Its metadata and tensors. Those of a split file have the path and the metadata of the first part.

    Raises:
        ModelError: A file is truncated or missing, has another format, or is no part of the same model.
        OSError: The file cannot be read.
    """
    path = Path(path).absolute()
    file = _read_one(path)
    count = int(file.metadata.get("split.count", 1))
    if count > 1:
        file = _joined(path, count)
    if "general.architecture" not in file.metadata:
        raise ModelError(f"{file.path} has no general.architecture: it is not a model")
    return file


def _joined(path: Path, count: int) -> GgufFile:
    """All parts of a split file."""
    paths = part_paths(path)
    if len(paths) != count:
        raise ModelError(
            f"{path} is one of {count} parts: give all of them the names of llama.cpp's `llama-gguf-split`, "
            f"such as NAME-00001-of-{count:05}.gguf"
        )
    tensors: dict[str, StoredTensor | GgufTensor] = {}
    metadata: dict[str, Any] = {}
    for number, part in enumerate(paths):
        if not part.is_file():
            raise ModelError(f"{path} is one of {count} parts, and {part.name} is missing beside it")
        file = _read_one(part)
        if (file.metadata.get("split.no"), file.metadata.get("split.count")) != (number, count):
            raise ModelError(f"{part} is not part {number + 1} of {count}: download it again")
        if twice := tensors.keys() & file.tensors.keys():
            raise ModelError(f"{part} has the tensor {min(twice)}, which another part has too")
        tensors |= file.tensors
        metadata = metadata or file.metadata
    if len(tensors) != metadata.get("split.tensors.count", len(tensors)):
        raise ModelError(
            f"{paths[0]} has {len(tensors)} tensors in its {count} parts, not "
            f"{metadata['split.tensors.count']}: download it again"
        )
    return GgufFile(paths[0], metadata, tensors)


def _read_one(path: Path) -> GgufFile:
    """One file, which may be a part."""
    with open(path, "rb") as file:
        head = file.read(8)
        if head == b"version ":
            raise ModelError(f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` there")
        if head[:4] != MAGIC:
            raise ModelError(f"{path} is not a GGUF file: its first bytes are others")
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                metadata, tensors = _parse(path, data)
        except (struct.error, ValueError, IndexError, KeyError, OverflowError, MemoryError) as error:
            raise ModelError(f"{path} is truncated or damaged: download it again") from error
    return GgufFile(path, metadata, tensors)


class _Cursor:
    """A place in the header. Reading behind the end of the file raises struct.error."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, len(MAGIC)

    def number(self, kind: str) -> Any:
        (value,) = struct.unpack_from(f"<{kind}", self.data, self.at)
        self.at += struct.calcsize(f"<{kind}")
        return value

    def string(self) -> str:
        return str(self._bytes(self.number("Q")), "utf-8")

    def value(self) -> Any:
        """A metadata value; None for an array that is left out."""
        kind = self.number("I")
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.number(_SCALARS[kind])
        item, count = self.number("I"), self.number("Q")
        if item == _STRING:
            for _ in range(count):
                self._skip(self.number("Q"))
            return None
        dtype = np.dtype(f"<{_SCALARS[item]}")
        if count > _LONG_ARRAY:
            return self._skip(count * dtype.itemsize)
        return np.frombuffer(self._bytes(count * dtype.itemsize), dtype).tolist()

    def _bytes(self, size: int) -> bytes:
        start = self.at
        self._skip(size)
        return self.data[start : self.at]

    def _skip(self, size: int) -> None:
        if self.at + size > len(self.data):
            raise struct.error("behind the end of the file")
        self.at += size


def _parse(path: Path, data: mmap.mmap) -> tuple[dict[str, Any], dict[str, StoredTensor | GgufTensor]]:
    cursor = _Cursor(data)
    version = cursor.number("I")
    if version & 0xFFFF == 0:
        raise ModelError(f"{path} is big endian: convert it on this machine")
    if version not in VERSIONS:
        raise ModelError(
            f"{path} has version {version} of GGUF, this program reads {VERSIONS[0]} and {VERSIONS[1]}"
        )
    tensor_count, entry_count = cursor.number("Q"), cursor.number("Q")
    metadata = {}
    for _ in range(entry_count):
        key = cursor.string()
        metadata[key] = cursor.value()
    entries = []
    for _ in range(tensor_count):
        name = cursor.string()
        dims = [cursor.number("Q") for _ in range(cursor.number("I"))]
        entries.append((name, tuple(dims[::-1]), cursor.number("I"), cursor.number("Q")))
    alignment = int(metadata.get("general.alignment", 32))
    start = -(-cursor.at // alignment) * alignment
    tensors = {}
    for name, shape, kind, offset in entries:
        tensors[name] = tensor = _tensor(path, name, shape, kind, start + offset)
        if tensor.offset + tensor.length > len(data):
            raise ModelError(
                f"{path} is truncated: it ends at byte {len(data)}, {name} at byte "
                f"{tensor.offset + tensor.length}: download it again"
            )
    present = {key: value for key, value in metadata.items() if value is not None}
    return present, tensors


def _tensor(
    path: Path, name: str, shape: tuple[int, ...], kind: int, offset: int
) -> StoredTensor | GgufTensor:
    try:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    except ImportError as error:
        raise ModelError(f"{path} needs the package gguf to be read: install o2o[export]") from error
    try:
        dtype = GGMLQuantizationType(kind)
    except ValueError:
        raise ModelError(f"{path}: {name} has the unknown type {kind}: install a newer gguf") from None
    block, width = GGML_QUANT_SIZES[dtype]
    if shape and shape[-1] % block:
        raise ModelError(f"{path}: {name} has rows of {shape[-1]}, which {dtype.name} cannot store")
    length = math.prod(shape) // block * width
    return (StoredTensor if dtype.name in PLAIN else GgufTensor)(
        name, path, dtype.name, shape, offset, length
    )
