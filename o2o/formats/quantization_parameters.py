"""Quantization parameters of constants, as the schema has them: for each row, or for each block of columns.

per row     real = scale[row] * (stored - zero_point[row])
per block   real = scale[row, block] * stored; scales are a constant of their own
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from o2o.formats.schema import DIALECTS
from o2o.model import Format


def set_axis_quantization(
    value: ir.Value,
    scales: np.ndarray,
    zero_points: np.ndarray | None = None,
    axis: int = 0,
    of: Format = "circle",
) -> None:
    """Set one scale for the integers of a value, or a scale for each index of an axis.

    Args:
        value: The value, changed in place.
        scales: The scales, float32 [1] or [size of the axis].
        zero_points: The integers that stand for 0, of that shape; None for 0.
        axis: The axis.
        of: The format of the model.
    """
    parameters = DIALECTS[of].table("QuantizationParameters")()
    parameters.scale = np.asarray(scales, np.float32).reshape(-1)
    zeros = np.zeros(len(parameters.scale)) if zero_points is None else zero_points
    parameters.zeroPoint = np.asarray(zeros).reshape(-1).astype(np.int64)
    parameters.quantizedDimension = axis
    value.meta["fields"] = {**value.meta.get("fields", {}), "quantization": parameters}


def set_block_quantization(value: ir.Value, scales: ir.Value, block: int, of: Format = "circle") -> None:
    """Set a scale for each block of columns of a matrix.

    Args:
        value: The matrix [rows, columns], changed in place.
        scales: The constant of the scales, [rows, columns / block].
        block: The number of columns that share a scale.
        of: The format of the model.
    """
    table = DIALECTS[of].table
    parameters, details = table("QuantizationParameters")(), table("BlockwiseQuantization")()
    details.blockSize, details.zeroPoints = block, -1
    parameters.details = details
    value.meta["fields"] = {**value.meta.get("fields", {}), "quantization": parameters}
    value.meta["quantization_constants"] = {"scales": scales}
