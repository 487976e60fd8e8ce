"""Reader of the headers of GGUF files, llama.cpp's format: metadata, and where each tensor's bytes are."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from o2o.errors import ModelError
from o2o.weights.gguf_tensor import GgufTensor
from o2o.weights.stored_tensor import StoredTensor

MAGIC = b"GGUF"
PLAIN = {"F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64"}
"""The types of tensors that are not quantized; safetensors has the same names."""


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file, without the data of its tensors.

    Attributes:
        path: The file.
        metadata: {key: value}; arrays are lists.
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


def read_gguf(path: str | os.PathLike[str]) -> GgufFile:
    """Read a GGUF file's header, which takes seconds for a large vocabulary.

    Args:
        path: The file.

    Returns:
        Its metadata and tensors.

    Raises:
        ModelError: The file is truncated, has another format, or is a part of several.
        OSError: The file cannot be read.
    """
    path = Path(path).absolute()
    with open(path, "rb") as file:
        head = file.read(8)
    if head == b"version ":
        raise ModelError(f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` there")
    if head[:4] != MAGIC:
        raise ModelError(f"{path} is not a GGUF file: its first bytes are others")
    try:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader
    except ImportError as error:
        raise ModelError(f"{path} needs the package gguf to be read: install o2o[export]") from error
    try:
        reader = GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
        entries = [
            (str(one.name), one.tensor_type, [int(n) for n in one.shape[::-1]], int(one.data_offset))
            for one in reader.tensors
        ]
    except Exception as error:  # of any kind, for damaged bytes
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ModelError(f"{path} is truncated or damaged ({reason}): download it again") from error
    if reader.byte_order == "S":
        raise ModelError(f"{path} is big endian: convert it on this machine")
    if "general.architecture" not in metadata:
        raise ModelError(f"{path} has no general.architecture: it is not a model")
    if metadata.get("split.count", 1) > 1:
        raise ModelError(
            f"{path} is one of {metadata['split.count']} parts: join them with llama.cpp's "
            "`llama-gguf-split --merge`"
        )
    size = path.stat().st_size
    tensors: dict[str, StoredTensor | GgufTensor] = {}
    for name, kind, shape, offset in entries:
        type_name = GGMLQuantizationType(kind).name
        block, width = GGML_QUANT_SIZES[kind]
        count = 1
        for dim in shape:
            count *= dim
        length = count // block * width
        if offset + length > size:
            raise ModelError(
                f"{path} is truncated: it ends at byte {size}, {name} at byte {offset + length}: download it "
                "again"
            )
        plain = type_name in PLAIN
        tensor = (StoredTensor if plain else GgufTensor)(name, path, type_name, tuple(shape), offset, length)
        tensors[name] = tensor
    return GgufFile(path, metadata, tensors)
