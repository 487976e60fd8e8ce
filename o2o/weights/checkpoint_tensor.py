"""A checkpoint's tensor as a constant of a model, converted to the model's dtype while it is written."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import BinaryIO

import ml_dtypes
import numpy as np
import onnx_ir as ir

from o2o.errors import ModelError
from o2o.formats.tensors import CHUNK, StreamedTensor
from o2o.streams.copying import EndsEarly, copy
from o2o.weights.finite import cast
from o2o.weights.stored_tensor import StoredTensor
from o2o.weights.weight_source import WeightSource

# The dtypes that a weight can have in a model: the name in a checkpoint, and NumPy's dtype.
DTYPES = {
    ir.DataType.FLOAT: ("F32", np.dtype(np.float32)),
    ir.DataType.FLOAT16: ("F16", np.dtype(np.float16)),
    ir.DataType.BFLOAT16: ("BF16", np.dtype(ml_dtypes.bfloat16)),
}


class CheckpointTensor(StreamedTensor):
    """A tensor of a checkpoint, read and converted in chunks while it is written."""

    def __init__(
        self,
        name: str,
        stored: WeightSource,
        dtype: ir.DataType,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        """Refer to a tensor of a checkpoint.

        Args:
            name: The name of the constant.
            stored: The tensor in the checkpoint.
            dtype: The dtype of the constant: float32, float16 or bfloat16.
            shape: The shape of the constant; None for the stored shape.

        Raises:
            ModelError: The stored tensor is not floating point, or `dtype` is another one.
        """
        stored.check_float()
        if dtype not in DTYPES:
            raise ModelError(f"cannot store weight {name} as {dtype}: use float32, float16 or bfloat16")
        super().__init__(dtype, stored.shape if shape is None else shape, name)
        self.stored = stored

    @property
    def key(self) -> Hashable:
        return self.stored.key, self.dtype

    @property
    def is_converted(self) -> bool:
        return True

    def chunks(self, size: int = CHUNK) -> Iterator[memoryview]:
        dtype = DTYPES[self.dtype][1]
        for chunk in self.stored.chunks(size // dtype.itemsize):
            yield cast(chunk, dtype, self.stored.path, self.stored.name).view(np.uint8).data

    def tofile(self, file: BinaryIO) -> None:
        stored = self.stored
        if not isinstance(stored, StoredTensor) or DTYPES[self.dtype][0] != stored.dtype:
            super().tofile(file)
            return
        offset = stored.offset
        with open(stored.path, "rb", buffering=0) as source:
            try:
                for block in stored.blocks():  # checked while it passes; the kernel copies it
                    offset += copy(source.fileno(), offset, block.nbytes, file)
            except EndsEarly:
                raise ModelError(f"{stored.path}: the file became shorter while it was read") from None

    def with_shape(self, shape: tuple[int, ...], name: str) -> CheckpointTensor:
        return CheckpointTensor(name, self.stored, self.dtype, shape)
