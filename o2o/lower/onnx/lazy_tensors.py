"""Constants that are spelled otherwise as they are written, a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence

import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import StreamedTensor, pieces, storage_key

AT_ONCE = 1 << 22  # bytes


def computed(make: Callable[[], np.ndarray], shape: Sequence[int]) -> ir.LazyTensor:
    """The numbers that `make` gives, float32 in `shape`, made when they are written and not kept."""
    return ir.LazyTensor(
        lambda: ir.Tensor(np.ascontiguousarray(make(), np.float32)), ir.DataType.FLOAT, ir.Shape(shape)
    )


class Respelled(StreamedTensor):
    """Base: bytes made of other constants', `parts`."""

    def __init__(self, parts: Sequence[ir.TensorProtocol], dtype: ir.DataType, shape: Sequence[int]) -> None:
        super().__init__(dtype, shape, parts[0].name, parts)

    @property
    def key(self) -> Hashable:
        return type(self), self.dtype, tuple(self.shape.numpy()), *map(storage_key, self.parts)


class Shifted(Respelled):
    """Signed int8 or int4 [rows, columns] as unsigned numbers that are 128 or 8 more, uint8 [rows, blocks,
    bytes of a block]; what is missing in the last block stands for 0."""

    def __init__(self, source: ir.TensorProtocol, rows: int, columns: int, block: int) -> None:
        bits = source.dtype.bitwidth
        count = -(-columns // block)
        super().__init__([source], ir.DataType.UINT8, [rows, count, block * bits // 8])
        self.row = columns * bits // 8  # bytes
        self.padding = (count * block - columns) * bits // 8
        self.shift = 0x80 if bits == 8 else 0x88  # what flips the sign of each number in a byte

    def pieces(self, size: int = AT_ONCE) -> Iterator[bytes | memoryview]:
        rows = max(1, size // self.row)
        for piece in pieces(self.parts[0], rows * self.row):
            shifted = np.frombuffer(piece, np.uint8) ^ np.uint8(self.shift)
            if self.padding:
                padded = ((0, 0), (0, self.padding))
                shifted = np.pad(shifted.reshape(-1, self.row), padded, constant_values=self.shift)
            yield shifted.tobytes()


class Joined(Respelled):
    """Matrices of as many columns, one below the other."""

    def __init__(self, parts: Sequence[ir.TensorProtocol]) -> None:
        rows = sum(part.shape.numpy()[-2] for part in parts)
        super().__init__(parts, parts[0].dtype, [rows, parts[0].shape.numpy()[-1]])

    def pieces(self, size: int = AT_ONCE) -> Iterator[bytes | memoryview]:
        for part in self.parts:
            yield from pieces(part, size)
