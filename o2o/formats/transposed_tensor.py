"""A constant matrix, transposed while it is written."""

from __future__ import annotations

from collections.abc import Hashable, Iterator

import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import CHUNK, StreamedTensor, storage_key


class TransposedTensor(StreamedTensor):
    """The transpose of a constant matrix. It is computed in blocks of rows."""

    def __init__(self, name: str, matrix: ir.TensorProtocol, shape: tuple[int, ...] | None = None) -> None:
        """Transpose a constant.

        Args:
            name: The name of the result.
            matrix: The constant [rows, columns].
            shape: The shape of the result; None for [columns, rows].
        """
        super().__init__(matrix.dtype, shape or matrix.shape.numpy()[::-1], name, [matrix])

    @property
    def key(self) -> Hashable:
        (matrix,) = self.parts
        return "transposed", storage_key(matrix), matrix.shape.numpy()

    def chunks(self, size: int = CHUNK) -> Iterator[bytes | memoryview]:
        numbers = self.parts[0].numpy()
        if self.dtype.bitwidth < 8 and (self.dtype.bitwidth < 4 or numbers.shape[0] % 2):
            yield ir.Tensor(np.ascontiguousarray(numbers.T), self.dtype).tobytes()
            return
        step = max(1, size // max(1, numbers.shape[0] * numbers.itemsize))
        for start in range(0, numbers.shape[1], step):
            block = np.ascontiguousarray(numbers[:, start : start + step].T).reshape(-1).view(np.uint8)
            packed = (block[0::2] & 15) | (block[1::2] << 4) if self.dtype.bitwidth == 4 else block
            yield packed.data

    def with_shape(self, shape: tuple[int, ...], name: str) -> TransposedTensor:
        return TransposedTensor(name, self.parts[0], shape)
