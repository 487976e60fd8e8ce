"""A tensor of a checkpoint's file: where its bytes are, and its numbers as float32, in chunks."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from o2o.errors import ModelError
from o2o.weights.finite import all_finite, allowed, cast, non_finite_error

# Bytes of one element, by dtype as safetensors names it.
ITEM_SIZE = {
    "BOOL": 1, "I8": 1, "U8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip

# NumPy's dtypes of the stored bytes.
FLOATS = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F64": np.dtype("<f8"),
}
_FLOAT32 = np.dtype(np.float32)

BLOCK = 1 << 16
"""Elements that are read and checked at a time."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a file, in C order.

    Attributes:
        name: Its name in the checkpoint.
        path: The file.
        dtype: Its dtype, as safetensors names it: F32, BF16, F16, ...
        shape: Its shape.
        offset: Its first byte in the file.
        length: Its length in bytes.
    """

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int

    def check_float(self) -> None:
        """Check that the tensor is floating point.

        Raises:
            ModelError: It has another dtype.
        """
        if self.dtype not in FLOATS:
            raise ModelError(f"{self.path}: {self.name} is stored as {self.dtype}, not as a float")

    def blocks(self, size: int = BLOCK) -> Iterator[np.ndarray]:
        """Read the numbers as they are stored, in blocks. Each is checked before it is returned.

        Args:
            size: The largest number of elements in a block.

        Yields:
            The numbers in C order, in the stored dtype [at most size].

        Raises:
            ModelError: The tensor is not floating point, numbers are not finite (unless
                `o2o.weights.finite.ALLOW` is set), or the file has become shorter.
            OSError: The file cannot be read.
        """
        check = not allowed()
        for block in self._read(size):
            if check and not all_finite(block):
                raise non_finite_error(self.path, self.name, self.shape, self._read(BLOCK))
            yield block

    def chunks(self, size: int = 4 << 20) -> Iterator[np.ndarray]:
        """Read the numbers in chunks.

        Args:
            size: The largest number of elements in a chunk.

        Yields:
            The numbers in C order, float32 [at most size].

        Raises:
            ModelError: See `blocks`; or a number does not fit float32.
            OSError: The file cannot be read.
        """
        for block in self.blocks(size):
            if self.dtype == "BF16":  # the upper half of a float32
                yield np.left_shift(block.view(np.uint16), np.uint32(16), dtype=np.uint32).view(np.float32)
            else:
                yield cast(block, _FLOAT32, self.path, self.name)

    def _read(self, size: int) -> Iterator[np.ndarray]:
        self.check_float()
        count, width = math.prod(self.shape), ITEM_SIZE[self.dtype]
        for start in range(0, count, size):
            offset, length = self.offset + start * width, min(size, count - start)
            data = np.fromfile(self.path, FLOATS[self.dtype], length, offset=offset)
            if len(data) < length:
                raise ModelError(f"{self.path}: the file became shorter while it was read")
            yield data

    def digest(self) -> str:
        """Return a hash of the numbers.

        Returns:
            The SHA-256 of their float32 bytes, in hexadecimal: equal for equal numbers of any dtype.
        """
        return hashlib.sha256(self.read_float32().tobytes()).hexdigest()

    def read_float32(self) -> np.ndarray:
        """Read all numbers.

        Returns:
            The numbers, float32, in the tensor's shape.

        Raises:
            ModelError: See `chunks`.
            OSError: The file cannot be read.
        """
        return np.concatenate([np.zeros(0, np.float32), *self.chunks()]).reshape(self.shape)
