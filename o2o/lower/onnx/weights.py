"""Matrices of Circle as ONNX constants and what computes with them.

A matrix of FULLY_CONNECTED is [N, D], a row for each result, in both: its bytes are written as they are
stored, from wherever they lie, and never turned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from o2o.errors import ModelError
from o2o.formats.external_tensor import ExternalTensor
from o2o.formats.tensors import is_constant, is_quantized, numbers, storage_key
from o2o.lower.onnx.lazy_tensors import Joined
from o2o.model import quantization_constants, shape_of
from o2o.rewriting.matchers import producer_of

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass(frozen=True)
class Matrix:
    """The constant `tensor` [rows, columns]. scales: gives those of quantised ones, float32 [rows, blocks].

    block: the columns that share a scale; all of them for one scale a row. in_float: it is turned back to
    float before it is computed with, rather than multiplied with integers.
    """

    name: str
    tensor: ir.TensorProtocol
    rows: int
    columns: int
    scales: Callable[[], np.ndarray] | None = None
    block: int = 0
    in_float: bool = False

    @property
    def key(self) -> tuple:
        """Equal for matrices of the same bytes that mean the same."""
        return storage_key(self.tensor), self.rows, self.columns, self.tensor.dtype, self.block


def matrix_of(value: ir.Value | None, what: str) -> Matrix:
    """The matrix that `value` is, also by way of a DEQUANTIZE or a CAST to float32. Raises ModelError.

    what: who takes it, for a message.
    """
    in_float = False
    while (node := producer_of(value, "DEQUANTIZE", "CAST")) is not None and node.inputs[0] is not None:
        value, in_float = node.inputs[0], True
    if value is None or not is_constant(value) or value.const_value is None:
        raise ModelError(f"{what}: its weights are not constant")
    if isinstance(value.const_value, ExternalTensor):
        raise ModelError(f"{what}: {value.name} is not in the file: run bind.weights.py first")
    shape = shape_of(value)
    if any(dim != 1 for dim in shape[:-2]):
        raise ModelError(f"{what}: {value.name} {list(shape)} is no matrix: run reshape.fc_weight.py first")
    rows, columns = (1, 1, *shape)[-2:]
    if not is_quantized(value):
        if value.dtype not in FLOATS or value.const_value.dtype != value.dtype:
            raise ModelError(f"{what}: {value.name} is {value.dtype}, not of floats")
        return Matrix(value.name or "weight", value.const_value, rows, columns, in_float=in_float)
    scales, block = _scales(value, rows, columns, what)
    return Matrix(value.name or "weight", value.const_value, rows, columns, scales, block, in_float)


def join(matrices: Sequence[Matrix], name: str) -> Matrix:
    """Matrices of one kind, one below the other."""
    scales = [matrix.scales for matrix in matrices if matrix.scales is not None]
    first = matrices[0]
    return Matrix(
        name,
        Joined([matrix.tensor for matrix in matrices]),
        sum(matrix.rows for matrix in matrices),
        first.columns,
        (lambda: np.concatenate([each() for each in scales])) if scales else None,
        first.block,
        first.in_float,
    )


def _scales(value: ir.Value, rows: int, columns: int, what: str) -> tuple[Callable[[], np.ndarray], int]:
    """Those of a symmetrically quantised matrix, [rows, blocks], and the columns of a block."""
    quantization = value.meta["fields"]["quantization"]
    if value.dtype not in (ir.DataType.INT8, ir.DataType.INT4):
        raise ModelError(
            f"{what}: {value.name} is quantised to {value.dtype}: only int8 and int4 are known here"
        )
    if (details := getattr(quantization, "details", None)) is not None:
        block = int(getattr(details, "blockSize", 0))
        scales = quantization_constants(value).get("scales")
        zero = quantization_constants(value).get("zeroPoints")
        if (
            scales is None
            or not block
            or math.prod(shape_of(scales)) * block != rows * columns
            or zero is not None
        ):
            raise ModelError(f"{what}: the blocks of {value.name} are not those of a symmetric matrix")
        return lambda: by_block(scales, rows), block
    scale = np.asarray(quantization.scale, np.float32).reshape(-1)
    zero = quantization.zeroPoint
    if zero is not None and np.any(np.asarray(zero) != 0):
        raise ModelError(f"{what}: {value.name} has zero points: only symmetric quantisation is known here")
    if len(scale) not in (1, rows) or (
        len(scale) > 1 and quantization.quantizedDimension != len(shape_of(value)) - 2
    ):
        raise ModelError(f"{what}: {value.name} is not quantised by row")
    return lambda: np.broadcast_to(scale[:, None], (rows, 1)), columns


def by_block(scales: ir.Value, rows: int) -> np.ndarray:
    """The constant `scales`, float32 [rows, blocks]."""
    found = numbers(scales)
    assert found is not None
    return found.reshape(rows, -1).astype(np.float32)
