"""A constant with permuted axes, transposed while it is written."""

from __future__ import annotations

from collections.abc import Hashable, Iterator

import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import CHUNK, StreamedTensor, release, storage_key

TILE_ROWS, TILE_COLUMNS = 128, 32


class TransposedTensor(StreamedTensor):
    """The transpose of a constant. It is computed in blocks of its first axis."""

    def __init__(
        self,
        name: str,
        source: ir.TensorProtocol,
        shape: tuple[int, ...] | None = None,
        axes: tuple[int, ...] | None = None,
    ) -> None:
        """Transpose a constant.

        Args:
            name: The name of the result.
            source: The constant.
            shape: The shape of the result; None for that of the transpose.
            axes: Axis i of the transpose is axis `axes[i]` of `source`; None for all axes in reverse.
        """
        dims = source.shape.numpy()
        self.axes = axes or tuple(range(len(dims)))[::-1]
        super().__init__(source.dtype, shape or [dims[axis] for axis in self.axes], name, [source])

    @property
    def key(self) -> Hashable:
        (source,) = self.parts
        return "transposed", storage_key(source), tuple(source.shape.numpy()), self.axes

    def chunks(self, size: int = CHUNK) -> Iterator[bytes | memoryview]:
        numbers = self.parts[0].numpy().transpose(self.axes)
        bits = self.dtype.bitwidth
        if bits < 8 and (bits < 4 or numbers[:1].size % 2):
            yield ir.Tensor(np.ascontiguousarray(numbers), self.dtype).tobytes()
            return
        step = max(1, size * len(numbers) // max(1, numbers.nbytes))
        for start in range(0, len(numbers), step):
            block = _contiguous(numbers[start : start + step]).reshape(-1).view(np.uint8)
            packed = (block[0::2] & 15) | (block[1::2] << 4) if bits == 4 else block
            yield packed.data
        release(self.parts[0])

    def with_shape(self, shape: tuple[int, ...], name: str) -> TransposedTensor:
        return TransposedTensor(name, self.parts[0], shape, self.axes)


def _contiguous(transposed: np.ndarray) -> np.ndarray:
    """A copy in C order. A matrix is copied in tiles that fit the processor's cache: six times as fast."""
    if transposed.ndim != 2:
        return np.ascontiguousarray(transposed)
    rows, columns = transposed.shape
    copy = np.empty((rows, columns), transposed.dtype)
    for top in range(0, rows, TILE_ROWS):
        for left in range(0, columns, TILE_COLUMNS):
            tile = slice(top, top + TILE_ROWS), slice(left, left + TILE_COLUMNS)
            copy[tile] = transposed[tile]
    return copy
