"""A constant of floats of another width as float32, converted while it is written."""

from __future__ import annotations

from collections.abc import Hashable, Iterator

import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import CHUNK, StreamedTensor, chunks, storage_key

OTHER_FLOATS = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
"""Floats that engines of Circle and TFLite have few operators of, or none."""


class WidenedTensor(StreamedTensor):
    """A constant as float32: float16 and bfloat16 without loss, float64 rounded, and finite if it was."""

    def __init__(self, name: str, source: ir.TensorProtocol, shape: tuple[int, ...] | None = None) -> None:
        """Convert a constant.

        Args:
            name: The name of the result.
            source: The constant, of one of `OTHER_FLOATS`.
            shape: The shape of the result; None for that of the constant.
        """
        super().__init__(ir.DataType.FLOAT, shape or source.shape.numpy(), name, [source])

    @property
    def key(self) -> Hashable:
        return "widened", storage_key(self.parts[0])

    def chunks(self, size: int = CHUNK) -> Iterator[memoryview]:
        (source,) = self.parts
        for chunk in chunks(source, size // 2):
            numbers = np.frombuffer(chunk, source.dtype.numpy())
            if source.dtype == ir.DataType.DOUBLE:
                limit = np.where(np.isfinite(numbers), np.finfo(np.float32).max, np.inf)
                numbers = np.clip(numbers, -limit, limit)
            numbers = numbers.astype(np.float32)
            yield numbers.view(np.uint8).data

    def with_shape(self, shape: tuple[int, ...], name: str) -> WidenedTensor:
        return WidenedTensor(name, self.parts[0], shape)
