"""A weight source: the numbers of one tensor of a checkpoint, read in blocks, wherever they come from."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator
from pathlib import Path

import ml_dtypes
import numpy as np

from o2o.weights.finite import all_finite, allowed, cast, non_finite_error

# NumPy's dtypes of the numbers that `read` returns, by the name in safetensors.
FLOATS = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F64": np.dtype("<f8"),
}
_FLOAT32 = np.dtype(np.float32)

BLOCK = 1 << 16
"""Elements that are read and checked at a time."""


class WeightSource(ABC):
    """A tensor whose numbers are read in blocks.

    Subclasses: `StoredTensor` (bytes of a file), `GgufTensor` (blocks of integers with scales),
    `DerivedTensor` (computed from other sources).

    Attributes:
        name: Its name in the checkpoint.
        path: The file that a reader finds it in by name.
        dtype: How it is stored: F32, BF16, F16, Q4_K, ...
        shape: Its shape.
        length: Its length in bytes, as it is stored.
    """

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    length: int

    @property
    @abstractmethod
    def key(self) -> Hashable:
        """What identifies its numbers: equal keys, equal numbers."""

    @abstractmethod
    def read(self, start: int, count: int) -> np.ndarray:
        """Read some of the numbers.

        Args:
            start: The first element, in C order.
            count: The number of elements.

        Returns:
            The numbers, unchecked, as a float dtype [count].

        Raises:
            ModelError: The file has become shorter.
            OSError: The file cannot be read.
        """

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def read_size(self) -> int:
        """Elements that are best read at a time: 0 for any number."""
        return 0

    def check_float(self) -> None:  # noqa: B027
        """Check that the numbers can be read as floats.

        Raises:
            ModelError: The tensor has another dtype.
        """

    def blocks(self, size: int = BLOCK) -> Iterator[np.ndarray]:
        """Read the numbers in blocks. Each is checked before it is returned.

        Args:
            size: The largest number of elements in a block.

        Yields:
            The numbers in C order, in the dtype of `read` [at most size].

        Raises:
            ModelError: The tensor is not floating point, numbers are not finite (unless
                `o2o.weights.finite.ALLOW` is set), or the file has become shorter.
            OSError: The file cannot be read.
        """
        check = not allowed()
        for block in self._read_all(size):
            if check and not all_finite(block):
                raise non_finite_error(self.path, self.name, self.shape, self._read_all(BLOCK))
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
            yield self.as_float32(block)

    def as_float32(self, block: np.ndarray) -> np.ndarray:
        """Convert numbers of this tensor.

        Args:
            block: Numbers of `read`.

        Returns:
            The same numbers in float32.

        Raises:
            ModelError: A number does not fit float32.
        """
        if block.dtype == FLOATS["BF16"]:  # the upper half of a float32
            return np.left_shift(block.view(np.uint16), np.uint32(16), dtype=np.uint32).view(np.float32)
        return cast(block, _FLOAT32, self.path, self.name)

    def _read_all(self, size: int) -> Iterator[np.ndarray]:
        self.check_float()
        step = max(size, self.read_size)
        for start in range(0, self.size, step):
            numbers = self.read(start, min(step, self.size - start))
            for part in range(0, len(numbers), size):
                yield numbers[part : part + size]

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
