"""A quantized tensor of a GGUF file: blocks of integers with scales, read as float32 by rows."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from o2o.errors import ModelError
from o2o.weights.weight_source import WeightSource

ROWS_AT_A_TIME = 1 << 20
"""Elements that are dequantized at a time, about: `gguf` needs several times their memory."""


@dataclass(frozen=True)
class GgufTensor(WeightSource):
    """A tensor of a GGUF file in a quantized type. The package `gguf` computes its numbers.

    Attributes:
        name: Its name in the file.
        path: The file.
        dtype: Its type, as GGUF names it: Q4_0, Q6_K, IQ4_NL, ...
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
        size = (last - first) * width
        data = np.fromfile(self.path, np.uint8, size, offset=self.offset + first * width)
        if len(data) < size:
            raise ModelError(f"{self.path}: the file became shorter while it was read")
        with np.errstate(all="ignore"):  # scales that are not finite are reported later
            numbers = dequantize(data.reshape(last - first, width), kind).reshape(-1)
        return numbers[start - first * block :][:count]
