"""Where each tensor's bytes lie in a safetensors file.

A file is: 8 bytes, the header's length N (little endian); N bytes of JSON, `{name: {"dtype", "shape",
"data_offsets": [begin, end]}}`, offsets counted from the end of the header; then the data. The library of
that name hands out tensors but not their places, and the places are what streaming needs.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from o2o.errors import ModelError

MAX_HEADER = 100 << 20  # bytes; the limit of the format's own library

# bytes of one element
ITEM_SIZE = {
    "BOOL": 1, "I8": 1, "U8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip

FLOATS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}  # as numpy reads them


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file: `length` bytes at `offset` (from the start of the file), in C order."""

    name: str
    path: Path
    dtype: str  # as the format spells it: F32, BF16, F16, ...
    shape: tuple[int, ...]
    offset: int
    length: int

    def pieces(self, size: int = 4 << 20) -> Iterator[np.ndarray]:
        """The numbers as float32, flat, at most `size` at a time, read from the file as they are asked for.

        Raises ModelError for other than floats.
        """
        if self.dtype not in FLOATS:
            raise ModelError(f"{self.path}: {self.name} is stored as {self.dtype}, not as a float")
        count, width = math.prod(self.shape), ITEM_SIZE[self.dtype]
        for start in range(0, count, size):
            offset = self.offset + start * width
            data = np.fromfile(self.path, FLOATS[self.dtype], min(size, count - start), offset=offset)
            if self.dtype == "BF16":  # the upper half of a float32
                yield np.left_shift(data, np.uint32(16), dtype=np.uint32).view(np.float32)
            else:
                yield data.astype(np.float32, copy=False)

    def read_float32(self) -> np.ndarray:
        """The numbers as float32, in their shape. Raises ModelError for other than floats."""
        return np.concatenate([np.zeros(0, np.float32), *self.pieces()]).reshape(self.shape)


def read_header(path: str | os.PathLike[str]) -> dict[str, StoredTensor]:
    """The tensors of the safetensors file at `path`, in the header's order; no data is read.

    Raises ModelError for a file that is cut short, is no safetensors file, or whose header contradicts
    itself; OSError for one that cannot be read.
    """
    path = Path(path).resolve()
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(8)
        if head == b"version ":
            raise ModelError(f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` there")
        length = int.from_bytes(head, "little")
        if len(head) < 8 or 8 + length > size:
            raise ModelError(
                f"{path} is cut short, or no safetensors file: {size} bytes, less than its header"
            )
        if length > MAX_HEADER:
            raise ModelError(f"{path} is no safetensors file: a header of {length} bytes")
        text = file.read(length)
    try:
        header = json.loads(text)
        if not isinstance(header, dict):
            raise ValueError("not a table")
    except ValueError as error:
        raise ModelError(f"{path} is no safetensors file: its header is not JSON ({error})") from error
    header.pop("__metadata__", None)
    start = 8 + length
    return {name: _entry(path, name, told, start, size) for name, told in header.items()}


def _entry(path: Path, name: str, told: Any, start: int, size: int) -> StoredTensor:
    try:
        dtype, shape = told["dtype"], tuple(told["shape"])
        begin, end = told["data_offsets"]
        whole = all(isinstance(n, int) and n >= 0 for n in (*shape, begin, end))
    except (TypeError, KeyError, ValueError) as error:
        raise ModelError(f"{path}: the header's entry for {name} is damaged") from error
    if dtype not in ITEM_SIZE:
        raise ModelError(f"{path}: {name} has an unknown dtype {dtype!r}")
    if not whole or end - begin != math.prod(shape) * ITEM_SIZE[dtype]:
        raise ModelError(f"{path}: {name} says shape {list(shape)} of {dtype} but bytes {begin} to {end}")
    if start + end > size:
        raise ModelError(
            f"{path} is cut short: it ends at byte {size}, {name} reaches to byte {start + end}: "
            "download it again"
        )
    return StoredTensor(name, path, dtype, shape, start + begin, end - begin)
