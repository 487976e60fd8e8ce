"""Memory-mapped tensors of a safetensors file: bfloat16 as uint16, as numpy has no bfloat16."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np


def tensors(checkpoint: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Read the tensors of a checkpoint with one file.

    Args:
        checkpoint: Its folder.

    Yields:
        The name of each tensor and its bits, uint16.

    Raises:
        ValueError: A tensor is not bfloat16.
    """
    file = checkpoint / "model.safetensors"
    with open(file, "rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
    data = np.memmap(file, np.uint8, "r", offset=8 + size)
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] != "BF16":
            raise ValueError(f"{file}: {name} is {entry['dtype']}, not BF16")
        begin, end = entry["data_offsets"]
        yield name, data[begin:end].view(np.uint16).reshape(entry["shape"])


def to_float32(bits: np.ndarray) -> np.ndarray:
    """Convert bfloat16 to float32.

    Args:
        bits: The bits of bfloat16 numbers, uint16.

    Returns:
        The same numbers, float32, in the same shape.
    """
    return (bits.astype(np.uint32) << 16).view(np.float32)
