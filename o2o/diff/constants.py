"""Two constants compared: whether their bytes are equal, and how far apart their numbers are.

Numbers are read in chunks of rows. Quantized constants count as the numbers that they stand for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import CHUNK, SourceTensor, bytes_in_memory, chunks, is_quantized, release
from o2o.formats.unbound_tensor import UnboundTensor
from o2o.model import dims_of, quantization_constants, shape_of


@dataclass
class Distance:
    """How far apart the numbers of two constants are.

    Attributes:
        count: Numbers that were compared.
        different: How many differ.
        largest: The largest difference.
        rms: The root of the mean squared difference.
        relative: `rms` divided by that of the first constant's numbers; infinity if these are 0.
        not_finite: Numbers that are NaN or infinite on one side, or differ there. They count in nothing else.
    """

    count: int = 0
    different: int = 0
    largest: float = 0.0
    rms: float = 0.0
    relative: float = 0.0
    not_finite: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return the distance for JSON.

        Returns:
            The fields by name. A number that is not finite is null.
        """
        return {name: number if math.isfinite(number) else None for name, number in vars(self).items()}


def same_bytes(first: ir.TensorProtocol, second: ir.TensorProtocol) -> bool:
    """Whether two constants store the same bytes, or refer to the same tensor of a checkpoint.

    Args:
        first: A constant.
        second: Another.

    Returns:
        True if they do. Bytes of files are mapped, and compared until the first difference.
    """
    if isinstance(first, UnboundTensor) or isinstance(second, UnboundTensor):
        return (
            isinstance(first, UnboundTensor) and isinstance(second, UnboundTensor) and first.key == second.key
        )
    if first.nbytes != second.nbytes:
        return False
    a, b = _bytes(first), _bytes(second)
    same = all(np.array_equal(a[i : i + CHUNK], b[i : i + CHUNK]) for i in range(0, len(a), CHUNK))
    release(first)
    release(second)
    return same


def _bytes(tensor: ir.TensorProtocol) -> np.ndarray:
    """The bytes of a constant, uint8 [nbytes], mapped where they are in a file."""
    if isinstance(tensor, SourceTensor):
        return tensor.source.view(tensor.span.start, tensor.span.size)
    raw = bytes_in_memory(tensor)
    return raw if raw is not None else np.frombuffer(b"".join(chunks(tensor)), np.uint8)


def distance(first: ir.Value, second: ir.Value) -> Distance | None:
    """Compare the numbers of two constants.

    Args:
        first: A constant.
        second: Another of the same shape.

    Returns:
        The distance. None if one has no numbers to read: text, references, zero points by block.
    """
    if dims_of(first) != dims_of(second) or not (_has_numbers(first) and _has_numbers(second)):
        return None
    result = Distance()
    squares = reference = 0.0
    for a, b in zip(_rows(first), _rows(second), strict=True):
        finite = np.isfinite(a) & np.isfinite(b)
        if not finite.all():
            equal = (a == b) | (np.isnan(a) & np.isnan(b))
            result.not_finite += int((~finite & ~equal).sum())
            a, b = a[finite], b[finite]
        gap = np.abs(a - b)
        result.count += gap.size
        result.different += int(np.count_nonzero(gap))
        result.largest = max(result.largest, float(gap.max(initial=0)))
        squares += float(np.square(gap).sum())
        reference += float(np.square(a).sum())
    for value in (first, second):
        assert value.const_value is not None
        release(value.const_value)
    result.rms = math.sqrt(squares / max(1, result.count))
    size = math.sqrt(reference / max(1, result.count))
    result.relative = result.rms / size if size else (math.inf if result.rms else 0.0)
    return result


def _has_numbers(value: ir.Value) -> bool:
    tensor = value.const_value
    return (
        tensor is not None
        and not isinstance(tensor, UnboundTensor)
        and value.dtype is not None
        and value.dtype == tensor.dtype
        and value.dtype not in (ir.DataType.STRING, ir.DataType.COMPLEX64, ir.DataType.COMPLEX128)
        and "zeroPoints" not in quantization_constants(value)
    )


def _rows(value: ir.Value) -> Iterator[np.ndarray]:
    """The numbers of a constant in float64, some rows at a time."""
    assert value.const_value is not None
    stored = value.const_value.numpy()
    rows = (
        stored.reshape(stored.shape[0] if stored.ndim > 1 else 1, -1) if stored.size else stored.reshape(0, 0)
    )
    step = max(1, CHUNK // 8 // max(1, rows.shape[1] if rows.size else 1))
    for start in range(0, len(rows), step):
        part = rows[start : start + step].astype(np.float64)
        yield _dequantized(value, part, start) if is_quantized(value) else part


def _dequantized(value: ir.Value, stored: np.ndarray, start: int) -> np.ndarray:
    """(stored - zero point) * scale of rows from `start` on."""
    stop = start + len(stored)
    blocks = quantization_constants(value).get("scales")
    if blocks is not None:
        assert blocks.const_value is not None
        by_block = blocks.const_value.numpy().reshape(shape_of(value)[0], -1)[start:stop].astype(np.float64)
        return stored * np.repeat(by_block, stored.shape[1] // by_block.shape[1], 1)
    quantization = value.meta["fields"]["quantization"]
    scale = _along(value, quantization.scale, start, stop, stored.shape)
    zeros = getattr(quantization, "zeroPoint", None)
    if zeros is not None and len(zeros):
        stored = stored - _along(value, zeros, start, stop, stored.shape)
    return stored * scale


def _along(
    value: ir.Value, parameters: np.ndarray, start: int, stop: int, shape: tuple[int, ...]
) -> np.ndarray:
    """Parameters of the whole tensor, or along one axis, for rows `start` to `stop` of [rows, others]."""
    numbers = np.asarray(parameters, np.float64)
    whole = shape_of(value)
    if len(numbers) == 1:
        return numbers
    axis = value.meta["fields"]["quantization"].quantizedDimension
    if len(whole) > 1 and axis == 0:
        return numbers[start:stop, np.newaxis]
    along = np.ones(max(1, len(whole)), int)
    along[axis if len(whole) > 1 else 0] = -1
    inner = np.broadcast_to(numbers.reshape(along), (1, *whole[1:]) if len(whole) > 1 else whole)
    return inner.reshape(1, -1)
