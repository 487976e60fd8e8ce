"""Constants as views of bytes, and when two of them are the same bytes.

A constant whose bytes do not spell its tensor's shape and dtype (strings, sparse or compressed data, types
that the IR lacks) is kept as what it is: uint8 [nbytes], under a value with the tensor's own shape.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

LARGE = 4096  # bytes from which a constant is data to pass on rather than part of the graph


def constant(
    raw: np.ndarray, dtype: ir.DataType | None, shape: tuple[int, ...], name: str
) -> ir.TensorProtocol:
    """The tensor that the bytes `raw` (uint8 [nbytes]) spell, without copying them."""
    count = int(np.prod(shape, dtype=np.int64))
    encoded = dtype is None or dtype == ir.DataType.STRING or raw.nbytes != -(-count * dtype.bitwidth // 8)
    if dtype is None or encoded:
        return ir.Tensor(raw, ir.DataType.UINT8, name=name)
    if dtype.bitwidth < 8:
        return ir.PackedTensor(raw, dtype, shape=ir.Shape(shape), name=name)
    return ir.Tensor(raw.view(dtype.numpy()).reshape(shape), dtype, shape=ir.Shape(shape), name=name)


def reshaped(tensor: ir.TensorProtocol, shape: tuple[int, ...], name: str) -> ir.TensorProtocol:
    """The same numbers in another shape, over the same bytes when those are in memory."""
    if (raw := bytes_in_memory(tensor)) is not None:
        return constant(raw, tensor.dtype, shape, name)
    return ir.Tensor(tensor.numpy().reshape(shape), tensor.dtype, shape=ir.Shape(shape), name=name)


def numbers(value: ir.Value | None) -> np.ndarray | None:
    """The numbers of a constant, in its shape; None when `value` is not one, or only encoded bytes.

    A quantised constant has none either: what is stored is not what it means.
    """
    if value is None or not is_constant(value) or is_quantized(value):
        return None
    tensor = value.const_value
    return tensor.numpy() if tensor is not None and tensor.dtype == value.dtype else None


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
    written (a file's, converted on the way, or a transposed view's)."""
    raw = getattr(tensor, "raw", None)
    if isinstance(raw, np.ndarray) and raw.flags.c_contiguous:
        return raw.reshape(-1).view(np.uint8)
    return None


def storage_key(tensor: ir.TensorProtocol) -> tuple[int, int]:
    """Equal for two constants that are views of the same bytes in memory (or in the mapped file).

    Within one model this is what keeps a buffer that several tensors share a single buffer, without
    looking at its contents.
    """
    if (raw := bytes_in_memory(tensor)) is not None:
        return raw.__array_interface__["data"][0], raw.nbytes
    return id(tensor), tensor.nbytes
