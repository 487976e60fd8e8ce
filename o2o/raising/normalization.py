"""Norms, as their parts: the forms that `o2o.rewriting` matches."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from o2o.model import shape_of
from o2o.raising.operation import FLOAT, Operation, Rules


def normalized(of: Operation, x: ir.Value, axes: Sequence[int], epsilon: float) -> list[ir.Value]:
    """Subtract the mean over axes, and divide by the standard deviation.

    Args:
        of: The operation.
        x: The numbers.
        axes: The axes of the mean.
        epsilon: Added to the variance.

    Returns:
        The normalized numbers, the mean, and the inverse of the standard deviation.
    """
    over = of.indices(list(axes), "axes")
    mean = of.emit("MEAN", x, over, keepDims=True)
    deviation = of.emit("SUB", x, mean)
    variance = of.emit("MEAN", of.emit("MUL", deviation, deviation), over, keepDims=True)
    root = of.emit("RSQRT", of.emit("ADD", variance, of.like(epsilon, x, "epsilon")))
    return [of.emit("MUL", deviation, root), mean, root]


def rms_norm(of: Operation, x: ir.Value, weight: ir.Value, epsilon: float) -> ir.Value:
    """Emit RMS_NORM, in float32.

    Args:
        of: The node that is raised.
        x: [..., D].
        weight: [D].
        epsilon: Added to the mean square.

    Returns:
        x / sqrt(mean(x^2) + epsilon) * weight, in the dtype of x.
    """
    D = shape_of(x)[-1]
    operands = [of.cast(x, FLOAT), of.cast(of.reshape(weight, [D]), FLOAT)]
    return of.cast(of.emit("RMS_NORM", *operands, epsilon=epsilon, name="normalized"), x.dtype)


def rms_normalization(of: Operation) -> ir.Value:
    """Raise RMSNormalization or SimplifiedLayerNormalization, over the axes from `axis` on.

    Args:
        of: The operation: x, scale.

    Returns:
        The normalized numbers.
    """
    x, scale = of.operand(0), of.operand(1)
    shape = shape_of(x)
    axis = of.axis(of.get("axis", -1), len(shape))
    size = math.prod(shape[axis:])
    x = of.reshape(x, [*shape[:axis], size])
    epsilon = of.get("epsilon", 1e-5)
    if math.prod(shape_of(scale)) == size:
        return of.reshape(rms_norm(of, x, scale, epsilon), shape)
    ones = of.constant(np.ones(size), "ones", np.float32)
    y = of.reshape(rms_norm(of, x, ones, epsilon), shape)
    return of.emit("MUL", y, scale, name="scaled")


def _layer_normalization(of: Operation) -> Sequence[ir.Value]:
    x, rank = of.operand(), len(shape_of(of.operand()))
    first = of.axis(int(of.get("axis", -1)), rank)
    wide = of.cast(x, ir.DataType.FLOAT) if of.get("stash_type", 1) == 1 else x
    y, *statistics = normalized(of, wide, range(first, rank), float(of.get("epsilon", 1e-5)))
    y = of.cast(y, x.dtype)
    y = of.emit("MUL", y, of.operand(1)) if of.has(1) else y
    return [of.emit("ADD", y, of.operand(2)) if of.has(2) else y, *statistics]


def _by_channel(of: Operation, value: ir.Value, rank: int) -> ir.Value:
    return of.reshape(value, [1, shape_of(value)[0], *[1] * (rank - 2)])


def _batch_normalization(of: Operation) -> Sequence[ir.Value]:
    if of.get("training_mode", 0):
        of.refuse("it trains")
    x = of.operand()
    rank = len(shape_of(x))
    scale, bias, mean, variance = (of.operand(index) for index in range(1, 5))
    root = of.emit("RSQRT", of.emit("ADD", variance, of.like(float(of.get("epsilon", 1e-5)), variance)))
    factor = of.emit("MUL", scale, root)
    offset = of.emit("SUB", bias, of.emit("MUL", mean, factor))
    product = of.emit("MUL", x, _by_channel(of, factor, rank))
    return [of.emit("ADD", product, _by_channel(of, offset, rank))]


def _instance_normalization(of: Operation) -> ir.Value:
    x, rank = of.operand(), len(shape_of(of.operand()))
    y, *_ = normalized(of, x, range(2, rank), float(of.get("epsilon", 1e-5)))
    y = of.emit("MUL", y, _by_channel(of, of.operand(1), rank))
    return of.emit("ADD", y, _by_channel(of, of.operand(2), rank))


def _lp_normalization(of: Operation) -> ir.Value:
    x = of.operand()
    axis = of.axis(int(of.get("axis", -1)), len(shape_of(x)))
    over = of.indices([axis], "axes")
    if int(of.get("p", 2)) == 1:
        norm = of.emit("SUM", of.emit("ABS", x), over, keepDims=True)
    else:
        norm = of.emit("SQRT", of.emit("SUM", of.emit("MUL", x, x), over, keepDims=True))
    is_zero = of.emit("EQUAL", norm, of.like(0, norm), dtype=ir.DataType.BOOL)
    divisor = of.emit("SELECT_V2", is_zero, of.like(1, norm), norm, dtype=norm.dtype)
    return of.emit("DIV", x, divisor)


RULES: Rules = {
    "RMSNormalization": rms_normalization,
    "SimplifiedLayerNormalization": rms_normalization,
    "LayerNormalization": _layer_normalization,
    "BatchNormalization": _batch_normalization,
    "InstanceNormalization": _instance_normalization,
    "LpNormalization": _lp_normalization,
}
"""Rules of ONNX's own domain. ONNX Runtime puts SimplifiedLayerNormalization there, too."""
