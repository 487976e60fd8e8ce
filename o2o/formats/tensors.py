"""Constants as views of bytes, and when two of them are the same bytes.

A constant whose bytes do not spell its tensor's shape and dtype (strings, sparse or compressed data, types
that the IR lacks) is kept as what it is: uint8 [nbytes], under a value with the tensor's own shape.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import BinaryIO

import numpy as np
import onnx_ir as ir

from o2o.formats.schema import Span
from o2o.streams import Source
from o2o.weights.external import Streamed

LARGE = 4096  # bytes from which a constant is data to pass on rather than part of the graph


def constant(
    raw: np.ndarray, dtype: ir.DataType | None, shape: tuple[int, ...], name: str
) -> ir.TensorProtocol:
    """The tensor that the bytes `raw` (uint8 [nbytes]) spell, without copying them."""
    dtype = _spelled(raw.nbytes, dtype, shape)
    if dtype is None:
        return ir.Tensor(raw, ir.DataType.UINT8, name=name)
    if dtype.bitwidth < 8:
        return ir.PackedTensor(raw, dtype, shape=ir.Shape(shape), name=name)
    return ir.Tensor(raw.view(dtype.numpy()).reshape(shape), dtype, shape=ir.Shape(shape), name=name)


def _spelled(nbytes: int, dtype: ir.DataType | None, shape: tuple[int, ...]) -> ir.DataType | None:
    """`dtype` when that many bytes spell numbers of it in `shape`, else None."""
    count = int(np.prod(shape, dtype=np.int64))
    if dtype is None or dtype == ir.DataType.STRING or nbytes != -(-count * dtype.bitwidth // 8):
        return None
    return dtype


class Stored(ir.LazyTensor):
    """A constant that lies in the data of a model's source, and is left there until its numbers are needed.

    It is written by copying from source to sink, without becoming part of this process.
    """

    def __init__(
        self, source: Source, span: Span, dtype: ir.DataType | None, shape: tuple[int, ...], name: str
    ) -> None:
        known = _spelled(span.size, dtype, shape)
        super().__init__(
            self._read, known or ir.DataType.UINT8, ir.Shape(shape if known else [span.size]), name=name
        )
        self.source, self.span = source, span

    def _read(self) -> ir.TensorProtocol:
        view = self.source.view(self.span.start, self.span.size)
        return constant(view, self.dtype, tuple(self.shape.numpy()), self.name or "")

    def pieces(self, size: int) -> Iterator[bytes]:
        """The bytes, `size` at a time."""
        return self.source.pieces(self.span.start, self.span.size, size)

    def tofile(self, file: BinaryIO) -> None:
        self.source.copy(self.span.start, self.span.size, file)


def with_shape(
    tensor: ir.TensorProtocol, shape: tuple[int, ...], name: str, dtype: ir.DataType | None = None
) -> ir.TensorProtocol:
    """The same bytes, wherever they are, in another shape.

    dtype: read as these instead; not for what is still to be converted.
    """
    dtype = dtype or tensor.dtype
    match tensor:
        case Stored():
            return Stored(tensor.source, tensor.span, dtype, shape, name)
        case Streamed():
            return tensor.with_shape(shape, name)
    if (raw := bytes_in_memory(tensor)) is not None:
        return constant(raw, dtype, shape, name)
    return ir.Tensor(tensor.numpy().reshape(shape), tensor.dtype, shape=ir.Shape(shape), name=name)


def are_numbers(value: ir.Value) -> bool:
    """Whether `value` is a constant of which the bytes spell its numbers.

    Those of a quantised constant do not: what is stored is not what it means.
    """
    tensor = value.const_value if is_constant(value) and not is_quantized(value) else None
    return tensor is not None and tensor.dtype == value.dtype


def numbers(value: ir.Value | None) -> np.ndarray | None:
    """The numbers of a constant, in its shape; None when `value` is not one, or only encoded bytes."""
    if value is None or not are_numbers(value):
        return None
    assert value.const_value is not None
    return value.const_value.numpy()


def is_constant(value: ir.Value) -> bool:
    """Whether `value` is always what is stored: an input may have numbers too, until someone sets it."""
    return value.const_value is not None and value.producer() is None and not value.is_graph_input()


def is_quantized(value: ir.Value) -> bool:
    """Whether the stored numbers of `value` stand for others: by scale and zero point, or by block."""
    quantization = value.meta.get("fields", {}).get("quantization")
    scale = getattr(quantization, "scale", None)
    return (scale is not None and len(scale) > 0) or getattr(quantization, "details", None) is not None


def bytes_in_memory(tensor: ir.TensorProtocol) -> np.ndarray | None:
    """The bytes of a constant, uint8 [nbytes], not copied; None when they are not in memory as they are
    written (a file's, converted or packed on the way, or a transposed view's)."""
    raw = getattr(tensor, "raw", None)
    if isinstance(raw, np.ndarray) and raw.flags.c_contiguous and raw.nbytes == tensor.nbytes:
        return raw.reshape(-1).view(np.uint8)
    return None


def is_in_place(tensor: ir.TensorProtocol) -> bool:
    """Whether others can be views of its bytes (`with_shape`)."""
    return isinstance(tensor, Stored | Streamed) or bytes_in_memory(tensor) is not None


def pieces(tensor: ir.TensorProtocol, size: int) -> Iterator[bytes | memoryview]:
    """The bytes of a constant, `size` at a time where they are not in memory."""
    if isinstance(tensor, Stored | Streamed):
        yield from tensor.pieces(size)
    elif (raw := bytes_in_memory(tensor)) is not None:
        yield raw.data
    else:
        yield tensor.tobytes()


def stream(tensor: ir.TensorProtocol, sink: BinaryIO) -> None:
    """Write the bytes of `tensor`, from where they are."""
    if (raw := bytes_in_memory(tensor)) is not None:
        sink.write(raw.data)
    elif hasattr(tensor, "tofile"):
        tensor.tofile(sink)
    else:
        sink.write(tensor.tobytes())


def storage_key(tensor: ir.TensorProtocol) -> Hashable:
    """Equal for two constants that are the same bytes in memory, in a file, or of a checkpoint.

    Within one model this is what keeps a buffer that several tensors share a single buffer, without
    looking at its contents.
    """
    match tensor:
        case Stored():
            return id(tensor.source), tensor.span
        case Streamed():
            return tensor.key
    if (raw := bytes_in_memory(tensor)) is not None:
        return raw.__array_interface__["data"][0], raw.nbytes
    return id(tensor), tensor.nbytes
