"""One tensor of a checkpoint: where its bytes lie, and its numbers as float32, piece by piece."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from o2o.errors import ModelError

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

    def check_float(self) -> None:
        """Raises ModelError for a tensor that is not of floats."""
        if self.dtype not in FLOATS:
            raise ModelError(f"{self.path}: {self.name} is stored as {self.dtype}, not as a float")

    def pieces(self, size: int = 4 << 20) -> Iterator[np.ndarray]:
        """The numbers as float32, flat, at most `size` at a time, read from the file as they are asked for.

        Raises ModelError for other than floats, and when the file has become shorter, OSError.
        """
        self.check_float()
        count, width = math.prod(self.shape), ITEM_SIZE[self.dtype]
        for start in range(0, count, size):
            offset, wanted = self.offset + start * width, min(size, count - start)
            data = np.fromfile(self.path, FLOATS[self.dtype], wanted, offset=offset)
            if len(data) < wanted:
                raise ModelError(f"{self.path}: the file became shorter while it was read")
            if self.dtype == "BF16":  # the upper half of a float32
                yield np.left_shift(data, np.uint32(16), dtype=np.uint32).view(np.float32)
            else:
                yield data.astype(np.float32, copy=False)

    def digest(self) -> str:
        """Equal for equal numbers, however they are stored."""
        return hashlib.sha256(self.read_float32().tobytes()).hexdigest()

    def read_float32(self) -> np.ndarray:
        """The numbers as float32, in their shape. Raises ModelError for other than floats."""
        return np.concatenate([np.zeros(0, np.float32), *self.pieces()]).reshape(self.shape)
