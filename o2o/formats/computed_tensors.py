"""Constants computed while they are written, a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence

import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import CHUNK, StreamedTensor, chunks, storage_key


def lazy_floats(
    make: Callable[[], np.ndarray], shape: Sequence[int], dtype: ir.DataType = ir.DataType.FLOAT
) -> ir.LazyTensor:
    """Return a constant that is computed each time it is written, and not cached.

    Args:
        make: Computes its elements.
        shape: Their shape.
        dtype: Their dtype.

    Returns:
        The constant.
    """
    return ir.LazyTensor(
        lambda: ir.Tensor(np.ascontiguousarray(make().astype(dtype.numpy(), copy=False))),
        dtype,
        ir.Shape(shape),
    )


class UnsignedBlocks(StreamedTensor):
    """An int8 or int4 matrix as unsigned elements in blocks, uint8 [rows, blocks, bytes of a block].

    128 (int8) or 8 (int4) is added to each element. The last block is padded with elements that stand for 0.
    """

    def __init__(self, source: ir.TensorProtocol, rows: int, columns: int, block: int) -> None:
        """Convert a matrix.

        Args:
            source: int8 or int4, [rows, columns].
            rows: Its rows.
            columns: Its columns.
            block: Columns of a block.
        """
        bits = source.dtype.bitwidth
        count = -(-columns // block)
        super().__init__(ir.DataType.UINT8, [rows, count, block * bits // 8], source.name, [source])
        self._row_bytes = columns * bits // 8
        self._padding_bytes = (count * block - columns) * bits // 8
        self._sign_bits = 0x80 if bits == 8 else 0x88  # of all elements in a byte

    @property
    def key(self) -> Hashable:
        return type(self), tuple(self.shape.numpy()), storage_key(self.parts[0])

    def chunks(self, size: int = CHUNK) -> Iterator[bytes | memoryview]:
        rows = max(1, size // self._row_bytes)
        for chunk in chunks(self.parts[0], rows * self._row_bytes):
            unsigned = np.frombuffer(chunk, np.uint8) ^ np.uint8(self._sign_bits)
            if self._padding_bytes:
                padding = ((0, 0), (0, self._padding_bytes))
                unsigned = np.pad(
                    unsigned.reshape(-1, self._row_bytes), padding, constant_values=self._sign_bits
                )
            yield unsigned.tobytes()
