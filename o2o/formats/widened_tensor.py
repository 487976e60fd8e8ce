"""A constant of 16-bit floats as float32, converted while it is written."""

from __future__ import annotations

from collections.abc import Hashable, Iterator

import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import CHUNK, StreamedTensor, chunks, storage_key

HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


class WidenedTensor(StreamedTensor):
    """A float16 or bfloat16 constant as float32, without loss."""

    def __init__(self, name: str, source: ir.TensorProtocol, shape: tuple[int, ...] | None = None) -> None:
        """Widen a constant.

        Args:
            name: The name of the result.
            source: The constant, float16 or bfloat16.
            shape: The shape of the result; None for that of the constant.
        """
        super().__init__(ir.DataType.FLOAT, shape or source.shape.numpy(), name, [source])

    @property
    def key(self) -> Hashable:
        return "widened", storage_key(self.parts[0])

    def chunks(self, size: int = CHUNK) -> Iterator[memoryview]:
        (source,) = self.parts
        for chunk in chunks(source, size // 2):
            numbers = np.frombuffer(chunk, source.dtype.numpy()).astype(np.float32)
            yield numbers.view(np.uint8).data

    def with_shape(self, shape: tuple[int, ...], name: str) -> WidenedTensor:
        return WidenedTensor(name, self.parts[0], shape)
