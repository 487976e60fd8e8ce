"""A checkpoint's tensors as they lie in its file, mapped: bfloat16 as uint16, which numpy has no name for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np


def tensors(checkpoint: Path) -> Iterator[tuple[str, np.ndarray]]:
    """(name, bits) of each tensor in the folder's one file. Raises ValueError where that is not bfloat16."""
    file = checkpoint / "model.safetensors"
    with open(file, "rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
    data = np.memmap(file, np.uint8, "r", offset=8 + size)
    for name, told in header.items():
        if name == "__metadata__":
            continue
        if told["dtype"] != "BF16":
            raise ValueError(f"{file}: {name} is {told['dtype']}, and not BF16")
        begin, end = told["data_offsets"]
        yield name, data[begin:end].view(np.uint16).reshape(told["shape"])


def widened(bits: np.ndarray) -> np.ndarray:
    """As float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
