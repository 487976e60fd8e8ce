"""Weight matrices of Circle, for ONNX constants.

Both formats store a matrix as [rows, columns] with a row for each result. So its bytes are copied unchanged,
and never transposed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from o2o.errors import ModelError
from o2o.formats.concatenated_tensor import ConcatenatedTensor
from o2o.formats.tensors import constant_array, is_constant, is_quantized, storage_key
from o2o.formats.unbound_tensor import UnboundTensor
from o2o.model import quantization_constants, shape_of
from o2o.rewriting.matchers import producer_of

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass(frozen=True)
class Matrix:
    """A constant matrix.

    Attributes:
        name: Its name.
        tensor: The stored elements, [rows, columns].
        rows: Number of rows.
        columns: Number of columns.
        scales: Reads the scales of a quantized matrix, float32 [rows, blocks]; None for floats.
        block: Number of columns that share a scale; `columns` for one scale per row.
        dequantize_first: Whether the model converts it to float before it multiplies. True with zero points.
        zeros: The integers that stand for 0, [rows]; None for 0.
    """

    name: str
    tensor: ir.TensorProtocol
    rows: int
    columns: int
    scales: Callable[[], np.ndarray] | None = None
    block: int = 0
    dequantize_first: bool = False
    zeros: np.ndarray | None = None

    @property
    def key(self) -> tuple:
        """Equal for matrices of the same bytes, dtype and quantization."""
        zeros = None if self.zeros is None else self.zeros.tobytes()
        return storage_key(self.tensor), self.rows, self.columns, self.tensor.dtype, self.block, zeros


def matrix_of(value: ir.Value | None, user: str) -> Matrix:
    """Return the constant matrix of an operand, also behind a DEQUANTIZE or CAST.

    Args:
        value: The operand.
        user: A description of the node that takes it, for messages.

    Returns:
        The matrix.

    Raises:
        ModelError: It is not a constant in the file, not a matrix, or not symmetrically quantized.
    """
    dequantize_first = False
    while (node := producer_of(value, "DEQUANTIZE", "CAST")) is not None and node.inputs[0] is not None:
        value, dequantize_first = node.inputs[0], True
    if value is None or not is_constant(value) or value.const_value is None:
        raise ModelError(f"{user}: its weights are not a constant")
    if isinstance(value.const_value, UnboundTensor):
        raise ModelError(f"{user}: {value.name} is not in the file: run bind.weights.py first")
    shape = shape_of(value)
    if any(dim != 1 for dim in shape[:-2]):
        raise ModelError(
            f"{user}: {value.name} {list(shape)} is not a matrix: run reshape.fc_weight.py first"
        )
    rows, columns = (1, 1, *shape)[-2:]
    if not is_quantized(value):
        if value.dtype not in FLOATS or value.const_value.dtype != value.dtype:
            raise ModelError(f"{user}: {value.name} is {value.dtype}, not floats")
        return Matrix(
            value.name or "weight", value.const_value, rows, columns, dequantize_first=dequantize_first
        )
    scales, block = _scales(value, rows, columns, user)
    zeros = _zeros(value, rows)
    dequantize_first |= zeros is not None
    name = value.name or "weight"
    return Matrix(name, value.const_value, rows, columns, scales, block, dequantize_first, zeros)


def concatenate(matrices: Sequence[Matrix], name: str) -> Matrix:
    """Concatenate matrices along the rows.

    Args:
        matrices: Matrices of equal dtype, columns and block.
        name: The name of the result.

    Returns:
        Their rows one below the other. The stored bytes are read when they are written.
    """
    scales = [matrix.scales for matrix in matrices if matrix.scales is not None]
    first = matrices[0]
    rows = sum(matrix.rows for matrix in matrices)
    zeros = [np.zeros(matrix.rows, np.int8) if matrix.zeros is None else matrix.zeros for matrix in matrices]
    return Matrix(
        name,
        ConcatenatedTensor(name, [matrix.tensor for matrix in matrices], (rows, first.columns)),
        rows,
        first.columns,
        (lambda: np.concatenate([each() for each in scales])) if scales else None,
        first.block,
        first.dequantize_first,
        np.concatenate(zeros) if any(matrix.zeros is not None for matrix in matrices) else None,
    )


def _scales(value: ir.Value, rows: int, columns: int, user: str) -> tuple[Callable[[], np.ndarray], int]:
    """A reader of the scales, float32 [rows, blocks], and the block size in columns."""
    quantization = value.meta["fields"]["quantization"]
    if value.dtype not in (ir.DataType.INT8, ir.DataType.INT4):
        raise ModelError(
            f"{user}: {value.name} is quantized to {value.dtype}: only int8 and int4 are supported"
        )
    if (details := getattr(quantization, "details", None)) is not None:
        block = int(getattr(details, "blockSize", 0))
        constants = quantization_constants(value)
        scales = constants.get("scales")
        fits = scales is not None and math.prod(shape_of(scales)) * block == rows * columns
        if scales is None or not block or not fits or constants.get("zeroPoints") is not None:
            raise ModelError(f"{user}: {value.name} is not quantized symmetrically by blocks of columns")
        return lambda: scales_by_block(scales, rows), block
    scale = np.asarray(quantization.scale, np.float32).reshape(-1)
    if len(scale) not in (1, rows) or (
        len(scale) > 1 and quantization.quantizedDimension != len(shape_of(value)) - 2
    ):
        raise ModelError(f"{user}: {value.name} is not quantized per row")
    return lambda: np.broadcast_to(scale[:, None], (rows, 1)), columns


def _zeros(value: ir.Value, rows: int) -> np.ndarray | None:
    """The integers that stand for 0 in each row, int8 [rows]; None if all are 0."""
    zeros = value.meta["fields"]["quantization"].zeroPoint
    if zeros is None or quantization_constants(value) or not np.any(zeros):
        return None
    return np.broadcast_to(np.asarray(zeros, np.int8).reshape(-1), (rows,))


def scales_by_block(scales: ir.Value, rows: int) -> np.ndarray:
    """Return the scales of a matrix in blocks.

    Args:
        scales: A constant of rows * blocks elements.
        rows: Number of rows.

    Returns:
        float32 [rows, blocks].
    """
    array = constant_array(scales)
    assert array is not None
    return array.reshape(rows, -1).astype(np.float32)
