"""A quantized tensor of a GGUF file: blocks of integers with scales, read as float32 by rows."""

from __future__ import annotations

import numpy as np

from o2o.errors import ModelError
from o2o.weights.file_tensor import FileTensor

ROWS_AT_A_TIME = 1 << 20
"""Elements that are dequantized at a time, about: `gguf` needs several times their memory."""


class GgufTensor(FileTensor):
    """A tensor of a GGUF file in a quantized type. The package `gguf` computes its numbers.

    `dtype` is named as in GGUF: Q4_0, Q6_K, IQ4_NL, ...
    """

    @property
    def read_size(self) -> int:
        columns = self.shape[-1]
        return max(1, ROWS_AT_A_TIME // columns) * columns

    def check_float(self) -> None:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
        from gguf.quants import dequantize

        kind = GGMLQuantizationType[self.dtype]
        try:
            dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except NotImplementedError:
            raise ModelError(
                f"{self.path}: {self.name} is stored as {self.dtype}, which the package gguf does not read"
            ) from None

    def read(self, start: int, count: int) -> np.ndarray:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
        from gguf.quants import dequantize

        kind = GGMLQuantizationType[self.dtype]
        block, width = GGML_QUANT_SIZES[kind]
        first, last = start // block, -(-(start + count) // block)
        data = self.read_items(np.dtype(f"V{width}"), first, last - first).view(np.uint8)
        with np.errstate(all="ignore"):  # scales that are not finite are reported later
            numbers = dequantize(data.reshape(last - first, width), kind).reshape(-1)
        return numbers[start - first * block :][:count]
