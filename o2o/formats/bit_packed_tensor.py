"""Unsigned integers in packed blocks, as ONNX Runtime stores them, as signed integers of a matrix."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator

import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import CHUNK, StreamedTensor, chunks, storage_key


class BitPackedTensor(StreamedTensor):
    """An int4 or int8 matrix [rows, columns], of unsigned integers of a few bits, minus their middle.

    Integers of up to 4 bits become int4, larger ones int8: q - 2^(bits - 1).
    """

    def __init__(
        self,
        name: str,
        packed: ir.TensorProtocol,
        bits: int,
        shape: tuple[int, ...],
        dtype: ir.DataType | None = None,
    ) -> None:
        """Convert a constant.

        Args:
            name: The name of the result.
            packed: Bytes, each row a whole number of them. The first integer is in the lowest bits.
            bits: The bits of an integer, 1 to 8.
            shape: The shape of the result.
            dtype: The dtype of the result; None for int4 or int8. uint8 gives the bytes of int4, unseparated.
        """
        super().__init__(
            dtype or (ir.DataType.INT4 if bits <= 4 else ir.DataType.INT8), shape, name, [packed]
        )
        self.bits = bits

    @property
    def key(self) -> Hashable:
        return "bit-packed", self.bits, storage_key(self.parts[0])

    def chunks(self, size: int = CHUNK) -> Iterator[bytes | memoryview]:
        # Whole groups of integers: 8 of them fill `bits` bytes.
        step = max(1, size // (8 * self.bits)) * 8 * self.bits
        for chunk in chunks(self.parts[0], step):
            data = np.frombuffer(chunk, np.uint8)
            for start in range(0, len(data), step):
                yield self._signed(data[start : start + step]).tobytes()

    def _signed(self, data: np.ndarray) -> np.ndarray:
        if self.bits in (4, 8):
            return data ^ np.uint8({4: 0x88, 8: 0x80}[self.bits])
        bits = np.unpackbits(data, bitorder="little").reshape(-1, self.bits)
        weights = (1 << np.arange(self.bits)).astype(np.int16)
        signed = (bits @ weights - (1 << (self.bits - 1))).astype(np.int8).view(np.uint8)
        if self.bits > 4:
            return signed
        return (signed[0::2] & 15) | (signed[1::2] << 4)

    def with_shape(self, shape: tuple[int, ...], name: str) -> BitPackedTensor:
        if math.prod(shape) != math.prod(self.shape.numpy()):
            raise ValueError(f"{self.name} does not have the shape {shape}")
        return BitPackedTensor(name, self.parts[0], self.bits, shape, self.dtype)
