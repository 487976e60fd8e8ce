"""A tensor that is a range of bytes of a checkpoint's file."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from o2o.errors import ModelError
from o2o.weights.weight_source import WeightSource


@dataclass(frozen=True)
class FileTensor(WeightSource):
    """A tensor in a file. A subclass reads its numbers.

    Attributes:
        name: Its name in the checkpoint.
        path: The file.
        dtype: How it is stored, as the format names it.
        shape: Its shape, the slowest axis first.
        offset: Its first byte in the file.
        length: Its length in bytes.
    """

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int

    @property
    def key(self) -> Hashable:
        return self.path, self.offset, self.length

    def read_items(self, dtype: np.dtype, start: int, count: int) -> np.ndarray:
        """Read a part of the bytes.

        Args:
            dtype: What the bytes hold.
            start: The first item.
            count: The number of items.

        Returns:
            The items, `dtype` [count].

        Raises:
            ModelError: The file has become shorter.
            OSError: The file cannot be read.
        """
        items = np.fromfile(self.path, dtype, count, offset=self.offset + start * dtype.itemsize)
        if len(items) < count:
            raise ModelError(f"{self.path}: the file became shorter while it was read")
        return items
