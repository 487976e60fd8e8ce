"""A tensor of a checkpoint's file, whose bytes are its numbers."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from o2o.errors import ModelError
from o2o.weights.weight_source import FLOATS, WeightSource

# Bytes of one element, by dtype as safetensors names it.
ITEM_SIZE = {
    "BOOL": 1, "I8": 1, "U8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2,
    "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip


@dataclass(frozen=True)
class StoredTensor(WeightSource):
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

    @property
    def key(self) -> Hashable:
        return self.path, self.offset, self.length

    def check_float(self) -> None:
        """Check that the tensor is floating point of 16 bits or more.

        Raises:
            ModelError: It has another dtype.
        """
        if self.dtype.startswith("F8_"):
            raise ModelError(
                f"{self.path}: {self.name} is stored as {self.dtype}, a quantized format: export needs a "
                "checkpoint in float32, float16 or bfloat16, or a GGUF file"
            )
        if self.dtype not in FLOATS:
            raise ModelError(f"{self.path}: {self.name} is stored as {self.dtype}, not as a float")

    def read(self, start: int, count: int) -> np.ndarray:
        dtype = FLOATS[self.dtype]
        data = np.fromfile(self.path, dtype, count, offset=self.offset + start * dtype.itemsize)
        if len(data) < count:
            raise ModelError(f"{self.path}: the file became shorter while it was read")
        return data
