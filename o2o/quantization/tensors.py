"""Constants that are quantized while they are written, a few rows at a time."""

from __future__ import annotations

from collections.abc import Hashable, Iterator

import numpy as np
import onnx_ir as ir

from o2o.errors import ModelError
from o2o.formats.tensors import SourceTensor, StreamedTensor, storage_key
from o2o.formats.transposed_tensor import TransposedTensor
from o2o.formats.unbound_tensor import UnboundTensor
from o2o.quantization.error import QuantizationError
from o2o.quantization.rounding import RowQuantizer, best_scales, block_maxima
from o2o.quantization.schemes import Scheme
from o2o.weights.binding import weight_of
from o2o.weights.checkpoint_tensor import CheckpointTensor

CHUNK = 1 << 17  # numbers quantized at a time: with their intermediate results they fit a processor's cache


class QuantizedTensor(StreamedTensor):
    """A matrix that is quantized while it is written. `error` is set when it has been written or read."""

    def __init__(
        self, name: str, source: ir.TensorProtocol, scheme: Scheme, shape: tuple[int, int] | None = None
    ) -> None:
        """Read the matrix once, for its scales.

        Args:
            name: The name of the constant.
            source: The matrix, floating point [rows, columns]. It is not copied.
            scheme: The scheme.
            shape: [rows, columns] if the source has another shape.

        Raises:
            ModelError: Numbers are not finite, or larger than the scheme can store.
            OSError: A checkpoint cannot be read.
        """
        self.source, self.scheme = source, scheme
        rows, columns = shape or source.shape.numpy()
        super().__init__(scheme.dtype, (rows, columns), name, [source])
        self.error: QuantizationError | None = None
        dtype = np.float16 if scheme.block else np.float32
        self.stored_scales = np.empty((rows, scheme.blocks(columns)), dtype)
        start = 0
        for w in _rows(source, columns):
            maxima = block_maxima(w, scheme)
            if not maxima.max() <= scheme.largest:  # also true for NaN
                raise _unstorable(name, source, scheme, columns)
            if scheme.limit:
                self.stored_scales[start : start + len(w)] = best_scales(w, maxima, scheme)
            start += len(w)

    @property
    def scales(self) -> np.ndarray:
        """The scales, float32 [rows, blocks]."""
        return self.stored_scales.astype(np.float32, copy=False)

    @property
    def key(self) -> Hashable:
        return "quantized", self.scheme, storage_key(self.source)

    def chunks(self, size: int = 0) -> Iterator[bytes]:
        error = QuantizationError()
        columns = self.shape.numpy()[1]
        quantizer = RowQuantizer(self.scheme, max(1, CHUNK // columns), columns)
        start = 0
        for w in _rows(self.source, columns):
            yield quantizer.quantize(w, self.stored_scales[start : start + len(w)], error).tobytes()
            start += len(w)
        self.error = error


def _unstorable(name: str, source: ir.TensorProtocol, scheme: Scheme, columns: int) -> ModelError:
    """The error for numbers that the scheme cannot store: how many, and the first."""
    count, row, first = 0, 0, ""
    for w in _rows(source, columns):
        wrong = np.argwhere(~(np.abs(w) <= scheme.largest))  # also NaN
        if len(wrong) and not count:
            at = wrong[0]
            first = f"{w[at[0], at[1]]:g} at {[row + int(at[0]), int(at[1])]}"
        count += len(wrong)
        row += len(w)
    numbers = "number that is" if count == 1 else "numbers that are"
    return ModelError(
        f"{name} has {count:,} {numbers} not finite, or beyond {scheme.largest:.3g}, the first is {first}: "
        f"{scheme.name} cannot store them"
    )


def _rows(source: ir.TensorProtocol, columns: int) -> Iterator[np.ndarray]:
    """The rows of `source`, float32 [about CHUNK / columns, columns] at a time."""
    size = max(1, CHUNK // columns) * columns
    for flat in _numbers(source, size):
        for start in range(0, len(flat), size):
            yield flat[start : start + size].reshape(-1, columns)


def _numbers(source: ir.TensorProtocol, size: int) -> Iterator[np.ndarray]:
    """The numbers of `source`, float32 [about size] at a time; a file is never read as a whole."""
    if isinstance(source, UnboundTensor):
        source = weight_of(source)
    if isinstance(
        source, CheckpointTensor
    ):  # the numbers of the checkpoint, without a conversion to the model's dtype
        yield from source.stored.chunks(size)
        return
    dtype = source.dtype.numpy()
    if isinstance(source, SourceTensor | TransposedTensor):
        for chunk in source.chunks(size * dtype.itemsize):
            yield np.frombuffer(chunk, dtype).astype(np.float32, copy=False)
        return
    yield source.numpy().reshape(-1).astype(np.float32, copy=False)
