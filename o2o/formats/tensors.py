"""Constant tensors as views of bytes: in memory, in a model's source, or computed while they are written.

A constant whose bytes do not match its tensor's shape and dtype is stored as uint8 [nbytes], under a value
with the tensor's own shape. Examples: strings, sparse or compressed data, types without an equivalent in the
IR.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import BinaryIO

import numpy as np
import onnx_ir as ir

from o2o.errors import ModelError
from o2o.formats.schema import Span
from o2o.model import Model
from o2o.streams import Source

LARGE = 4096  # bytes from which a constant is written behind the header instead of into it
CHUNK = 4 << 20  # bytes read at a time while a constant is written


class StreamedTensor(ir.LazyTensor):
    """Base of constants whose bytes are produced in chunks while they are written.

    A subclass implements `key` and `chunks`.
    """

    def __init__(
        self,
        dtype: ir.DataType,
        shape: Sequence[int],
        name: str | None,
        parts: Sequence[ir.TensorProtocol] = (),
    ) -> None:
        """Create the tensor without reading its bytes.

        Args:
            dtype: The dtype of its elements.
            shape: Its shape.
            name: Its name.
            parts: The tensors that its bytes are computed from.
        """
        super().__init__(self._read, dtype, ir.Shape(shape), name=name)
        self.parts = tuple(parts)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.dtype}, {self.shape})"

    @property
    def key(self) -> Hashable:
        """Equal for two tensors that produce the same bytes."""
        raise NotImplementedError

    @property
    def is_converted(self) -> bool:
        """Whether the bytes are converted to `dtype` when they are written. No other dtype can share them."""
        return False

    def chunks(self, size: int = CHUNK) -> Iterator[bytes | memoryview]:
        """Yield the tensor's bytes in order.

        Args:
            size: The approximate number of bytes in each chunk.

        Yields:
            The bytes, little endian, in C order.

        Raises:
            ModelError: The bytes are not available.
        """
        raise NotImplementedError

    def tofile(self, file: BinaryIO) -> None:
        for chunk in self.chunks():
            file.write(chunk)

    def with_shape(self, shape: tuple[int, ...], name: str) -> StreamedTensor:
        """Return a tensor with the same bytes and another shape.

        Args:
            shape: The new shape, with the same number of elements.
            name: The name of the new tensor.

        Returns:
            A tensor with the same `key`.

        Raises:
            ModelError: The bytes are converted while they are written and depend on the shape.
        """
        raise ModelError(f"{self.name} is converted while it is written: its shape cannot be changed")

    def _read(self) -> ir.TensorProtocol:
        raw = np.frombuffer(b"".join(self.chunks()), np.uint8)
        return constant(raw, self.dtype, tuple(self.shape.numpy()), self.name or "")


class SourceTensor(StreamedTensor):
    """A constant in the bytes of a model's source.

    Its elements are mapped on demand. Writing copies the bytes from source to sink, in the kernel where
    possible.
    """

    def __init__(
        self, source: Source, span: Span, dtype: ir.DataType | None, shape: tuple[int, ...], name: str
    ) -> None:
        """Refer to bytes of `source`.

        Args:
            source: The source that the model was read from.
            span: The range of bytes in it.
            dtype: The dtype of the elements; None for a type without an equivalent in the IR.
            shape: The shape. If dtype and shape do not match the size of `span`, the tensor is uint8
                [nbytes].
            name: The name of the tensor.
        """
        fitting = _fitting_dtype(span.size, dtype, shape)
        super().__init__(fitting or ir.DataType.UINT8, shape if fitting else [span.size], name)
        self.source, self.span = source, span

    @property
    def key(self) -> Hashable:
        return id(self.source), self.span

    def _read(self) -> ir.TensorProtocol:
        view = self.source.view(self.span.start, self.span.size)
        return constant(view, self.dtype, tuple(self.shape.numpy()), self.name or "")

    def chunks(self, size: int = CHUNK) -> Iterator[bytes | memoryview]:
        return self.source.chunks(self.span.start, self.span.size, size)

    def tofile(self, file: BinaryIO) -> None:
        self.source.copy(self.span.start, self.span.size, file)

    def with_shape(self, shape: tuple[int, ...], name: str, dtype: ir.DataType | None = None) -> SourceTensor:
        return SourceTensor(self.source, self.span, dtype or self.dtype, shape, name)


def release(tensor: ir.TensorProtocol) -> None:
    """Take the mapped bytes of a constant out of the process's memory.

    Args:
        tensor: Any constant. Its bytes are read again when they are used.
    """
    for part in source_tensors(tensor):
        part.source.release(part.span.start, part.span.size)


def source_tensors(tensor: ir.TensorProtocol) -> Iterator[SourceTensor]:
    """Yield the parts of a model's source that a tensor is computed from.

    Args:
        tensor: Any constant.

    Yields:
        The tensor itself if it is a `SourceTensor`, else those among its parts, recursively.
    """
    if isinstance(tensor, SourceTensor):
        yield tensor
    elif isinstance(tensor, StreamedTensor):
        for part in tensor.parts:
            yield from source_tensors(part)


def constant(
    raw: np.ndarray, dtype: ir.DataType | None, shape: tuple[int, ...], name: str
) -> ir.TensorProtocol:
    """Return a tensor over bytes in memory, without copying them.

    Args:
        raw: The bytes, uint8 [nbytes].
        dtype: The dtype of the elements; None for a type without an equivalent in the IR.
        shape: The shape of the tensor.
        name: The name of the tensor.

    Returns:
        A tensor of that dtype and shape, or uint8 [nbytes] if they do not match the number of bytes.
    """
    dtype = _fitting_dtype(raw.nbytes, dtype, shape)
    if dtype is None:
        return ir.Tensor(raw, ir.DataType.UINT8, name=name)
    if dtype.bitwidth < 8:
        return ir.PackedTensor(raw, dtype, shape=ir.Shape(shape), name=name)
    return ir.Tensor(raw.view(dtype.numpy()).reshape(shape), dtype, shape=ir.Shape(shape), name=name)


def _fitting_dtype(nbytes: int, dtype: ir.DataType | None, shape: Sequence[int]) -> ir.DataType | None:
    """`dtype` if `nbytes` bytes hold exactly the elements of `shape`, else None."""
    count = int(np.prod(shape, dtype=np.int64))
    if dtype is None or dtype == ir.DataType.STRING or nbytes != -(-count * dtype.bitwidth // 8):
        return None
    return dtype


def with_shape(
    tensor: ir.TensorProtocol, shape: tuple[int, ...], name: str, dtype: ir.DataType | None = None
) -> ir.TensorProtocol:
    """Return a tensor with the same bytes and another shape.

    Args:
        tensor: Any constant.
        shape: The new shape.
        name: The name of the new tensor.
        dtype: Reinterpret the bytes as this dtype. Not for tensors that are converted while they are written.

    Returns:
        A tensor that shares the bytes of `tensor` if `can_share_bytes(tensor)`, else a copy.

    Raises:
        ModelError: The bytes are converted while they are written and depend on the shape.
    """
    dtype = dtype or tensor.dtype
    match tensor:
        case SourceTensor():
            return tensor.with_shape(shape, name, dtype)
        case StreamedTensor():
            return tensor.with_shape(shape, name)
    if (raw := bytes_in_memory(tensor)) is not None:
        return constant(raw, dtype, shape, name)
    return ir.Tensor(tensor.numpy().reshape(shape), tensor.dtype, shape=ir.Shape(shape), name=name)


def is_plain(value: ir.Value) -> bool:
    """Return whether the stored bytes of a constant are its elements.

    Args:
        value: Any value.

    Returns:
        False for values that are not constant and for quantized constants, whose stored integers stand for
        other numbers.
    """
    tensor = value.const_value if is_constant(value) and not is_quantized(value) else None
    return tensor is not None and tensor.dtype == value.dtype


def constant_array(value: ir.Value | None) -> np.ndarray | None:
    """Return the elements of a constant.

    Args:
        value: Any value.

    Returns:
        The elements, in the constant's shape; None for a value without `is_plain`.
    """
    if value is None or not is_plain(value):
        return None
    assert value.const_value is not None
    return value.const_value.numpy()


def is_constant(value: ir.Value) -> bool:
    """Return whether a value always equals its stored data.

    Args:
        value: Any value.

    Returns:
        False for values without data and for graph inputs, whose data is only a default.
    """
    if value.const_value is None or value.is_graph_input():
        return False
    producer = value.producer()
    return producer is None or is_constant_node(producer)


def is_constant_node(node: ir.Node) -> bool:
    """Return whether a node is ONNX's `Constant`, whose result is an attribute.

    Args:
        node: Any node.

    Returns:
        True for a `Constant`.
    """
    return node.op_type == "Constant" and node.domain == ""


def is_quantized(value: ir.Value) -> bool:
    """Return whether the stored integers of a value stand for other numbers.

    Args:
        value: Any value.

    Returns:
        True if the value has scales, for each axis or for each block.
    """
    quantization = value.meta.get("fields", {}).get("quantization")
    scale = getattr(quantization, "scale", None)
    return (scale is not None and len(scale) > 0) or getattr(quantization, "details", None) is not None


def bytes_in_memory(tensor: ir.TensorProtocol) -> np.ndarray | None:
    """Return the bytes of a constant that is in memory, without copying them.

    Args:
        tensor: Any constant.

    Returns:
        The bytes, uint8 [nbytes]. None if they are in a file, or if they differ from what is written:
        converted, packed or transposed.
    """
    raw = getattr(tensor, "raw", None)
    if isinstance(raw, np.ndarray) and raw.flags.c_contiguous and raw.nbytes == tensor.nbytes:
        return raw.reshape(-1).view(np.uint8)
    return None


def can_share_bytes(tensor: ir.TensorProtocol) -> bool:
    """Return whether `with_shape` can share the bytes of a constant.

    Args:
        tensor: Any constant.

    Returns:
        True if the bytes are in a file or contiguous in memory.
    """
    return isinstance(tensor, StreamedTensor) or bytes_in_memory(tensor) is not None


def chunks(tensor: ir.TensorProtocol, size: int = CHUNK) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a constant in order.

    Args:
        tensor: Any constant.
        size: The approximate number of bytes in each chunk. Bytes in memory are one chunk.

    Yields:
        The bytes, little endian, in C order. The length of each string is before it.
    """
    if isinstance(tensor, StreamedTensor):
        yield from tensor.chunks(size)
    elif (raw := bytes_in_memory(tensor)) is not None:
        yield raw.data
    elif tensor.dtype == ir.DataType.STRING:
        for item in tensor.numpy().reshape(-1):
            yield len(item).to_bytes(8, "little") + item
    else:
        yield tensor.tobytes()


def stream(tensor: ir.TensorProtocol, sink: BinaryIO) -> None:
    """Write the bytes of a constant to a sink, without loading a `StreamedTensor` into memory.

    Args:
        tensor: Any constant.
        sink: A binary file.
    """
    if (raw := bytes_in_memory(tensor)) is not None:
        sink.write(raw.data)
    elif hasattr(tensor, "tofile"):
        tensor.tofile(sink)
    else:
        sink.write(tensor.tobytes())


def storage_key(tensor: ir.TensorProtocol) -> Hashable:
    """Return what identifies the bytes of a constant within one model, without reading them.

    Tensors with equal keys share one buffer of the file.

    Args:
        tensor: Any constant.

    Returns:
        Equal keys for constants over the same bytes in memory, in a source, or of a checkpoint.
    """
    if isinstance(tensor, StreamedTensor):
        return tensor.key
    if (raw := bytes_in_memory(tensor)) is not None:
        return raw.__array_interface__["data"][0], raw.nbytes
    return id(tensor), tensor.nbytes


def constants_of(graph: ir.Graph) -> Iterator[ir.Value]:
    """Yield the values of a graph that have stored data.

    Args:
        graph: The graph.

    Yields:
        Inputs with defaults, initializers, loose values, and results of ONNX's `Constant`. A value may occur
        several times.
    """
    values = [*graph.inputs, *graph.initializers.values(), *graph.meta.get("loose", ())]
    values += [value for node in graph if is_constant_node(node) for value in node.outputs]
    yield from (value for value in values if value.const_value is not None)


def stored_bytes(model: Model) -> int:
    """Return how many bytes the constants of `model` take in a file. Shared storage counts once.

    Args:
        model: Any model.

    Returns:
        The number of bytes.
    """
    sizes: dict[Hashable, int] = {}
    for graph in model.all_graphs():
        for value in constants_of(graph):
            assert value.const_value is not None
            sizes[storage_key(value.const_value)] = value.const_value.nbytes
    return sum(sizes.values())
