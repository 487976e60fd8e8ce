"""A tensor of a checkpoint's file, whose bytes are its numbers."""

from __future__ import annotations

import numpy as np

from o2o.errors import ModelError
from o2o.weights.file_tensor import FileTensor
from o2o.weights.weight_source import FLOATS

# Bytes of one element, by dtype as safetensors names it.
ITEM_SIZE = {
    "BOOL": 1, "I8": 1, "U8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2,
    "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip


class StoredTensor(FileTensor):
    """A tensor of a file, in C order. `dtype` is named as in safetensors: F32, BF16, F16, ..."""

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
        return self.read_items(FLOATS[self.dtype], start, count)
