"""Numbers in integers, real = scale * (integer - zero): QuantizeLinear, DequantizeLinear, products.

A constant in 8 or 4 bits stays one: Circle's quantization of a tensor or along an axis, and a DEQUANTIZE.
Only FULLY_CONNECTED has blocks; elsewhere they become arithmetic. Unsigned integers become signed ones: the
middle of their range is taken off, from the zero point, too. Computed numbers become arithmetic that rounds
as ONNX does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from o2o.formats.bit_packed_tensor import BitPackedTensor
from o2o.formats.quantization_parameters import set_axis_quantization, set_block_quantization
from o2o.formats.tensors import constant_array, is_constant, with_shape
from o2o.formats.transposed_tensor import TransposedTensor
from o2o.model import shape_of
from o2o.raising.block_quantized import block_scales, with_zero_points
from o2o.raising.operation import FLOAT, INT32, Operation, Rules
from o2o.rewriting.builder import add_constant, add_tensor
from o2o.rewriting.matchers import constant_ints, producer_of

INT4, INT8, UINT4, UINT8 = ir.DataType.INT4, ir.DataType.INT8, ir.DataType.UINT4, ir.DataType.UINT8
RANGES = {
    INT4: (-8, 7),
    UINT4: (0, 15),
    INT8: (-128, 127),
    UINT8: (0, 255),
    ir.DataType.INT16: (-(1 << 15), (1 << 15) - 1),
    ir.DataType.UINT16: (0, (1 << 16) - 1),
}
EXACT = 256
"""Products of two 9-bit integers whose sum float32 holds."""


@dataclass(frozen=True)
class Stored:
    """A constant of integers.

    Attributes:
        value: The ONNX constant.
        tensor: Its integers as int8 or int4, less the middle of an unsigned range.
        scales: One float32, or one for each index of `axis`, or for each block.
        zeros: The integers that stand for 0, less the middle too, in the shape of `scales`.
        axis: The axis of the scales or of the blocks.
        block: The size of a block on the axis; 0 for no blocks.
    """

    value: ir.Value
    tensor: ir.TensorProtocol
    scales: np.ndarray
    zeros: np.ndarray
    axis: int
    block: int


def _stored(
    of: Operation, x: ir.Value, scale: ir.Value, zero: ir.Value | None, axis: int, block: int
) -> Stored | None:
    """A constant of 8 or 4 bits with constant parameters; None for another operand."""
    scales, zeros = constant_array(scale), None if zero is None else constant_array(zero)
    is_known = scales is not None and (zero is None or zeros is not None)
    if (
        not is_known
        or not is_constant(x)
        or x.const_value is None
        or x.dtype not in (INT4, INT8, UINT4, UINT8)
    ):
        return None
    assert scales is not None
    if x.dtype in (UINT4, UINT8):
        bits = x.dtype.bitwidth
        tensor: ir.TensorProtocol = BitPackedTensor("", x.const_value, bits, shape_of(x))
        middle = 1 << (bits - 1)
    else:
        tensor, middle = with_shape(x.const_value, shape_of(x), ""), 0
    numbers = np.zeros(scales.shape) if zeros is None else zeros
    return Stored(x, tensor, scales.astype(np.float32), np.asarray(numbers, np.float32) - middle, axis, block)


def _dequantize(of: Operation) -> ir.Value:
    """DequantizeLinear(x, x_scale, x_zero_point)."""
    x, scale = of.operand(0), of.operand(1)
    zero = of.operand(2) if of.has(2) else None
    block = int(of.get("block_size", 0))
    axis = of.axis(int(of.get("axis", 1)), len(shape_of(x))) if shape_of(scale) not in ((), (1,)) else 0
    stored = _stored(of, x, scale, zero, axis, block)
    dtype = scale.dtype
    if stored is None:
        return of.cast(_arithmetic(of, x, scale, zero, axis, block), dtype)
    value = (
        _real(of, stored)
        if not block
        else _arithmetic(
            of,
            add_tensor(of.op.graph, stored.tensor, f"{x.name}_integers"),
            of.constant(stored.scales, "scale"),
            of.constant(stored.zeros, "zero") if stored.zeros.any() else None,
            axis,
            block,
        )
    )
    result = of.cast(value, dtype)
    of.op.graph.meta.setdefault("stored", {})[result] = stored
    return result


def _real(of: Operation, stored: Stored) -> ir.Value:
    """DEQUANTIZE of a constant that is quantized as a whole or along an axis, float32."""
    constant = add_tensor(of.op.graph, stored.tensor, f"{stored.value.name}_integers")
    set_axis_quantization(constant, stored.scales, stored.zeros, stored.axis)
    return of.emit("DEQUANTIZE", constant, dtype=FLOAT, name="real")


def _arithmetic(
    of: Operation, x: ir.Value, scale: ir.Value, zero: ir.Value | None, axis: int, block: int
) -> ir.Value:
    """scale * (x - zero), float32."""
    shape = shape_of(x)
    y = of.cast(x, FLOAT)
    if block:
        y = of.reshape(y, [*shape[:axis], shape[axis] // block, block, *shape[axis + 1 :]])
    if zero is not None:
        y = of.emit("SUB", y, of.cast(_along(of, zero, shape, axis, block), FLOAT), name="centered")
    y = of.emit("MUL", y, of.cast(_along(of, scale, shape, axis, block), FLOAT), name="scaled")
    return of.reshape(y, shape)


def _along(of: Operation, x: ir.Value, shape: tuple[int, ...], axis: int, block: int) -> ir.Value:
    """A parameter that broadcasts: a scalar, a vector along an axis, or blocks."""
    if block:
        if shape_of(x)[axis] * block != shape[axis]:
            of.refuse(f"{shape[axis]} elements on axis {axis} are not whole blocks of {block}")
        return of.reshape(x, [*shape_of(x)[: axis + 1], 1, *shape_of(x)[axis + 1 :]])
    if math.prod(shape_of(x)) == 1:
        return of.reshape(x, [])
    return of.reshape(x, [shape_of(x)[0] if each == axis else 1 for each in range(len(shape))])


def _quantize(of: Operation) -> ir.Value:
    """QuantizeLinear(x, y_scale, y_zero_point)."""
    x, scale = of.operand(0), of.operand(1)
    zero = of.operand(2) if of.has(2) else None
    dtype = zero.dtype if zero is not None else ir.DataType(of.get("output_dtype", 0) or int(UINT8))
    if dtype not in RANGES:
        of.refuse(f"it quantizes to {dtype}")
    shape, block = shape_of(x), int(of.get("block_size", 0))
    axis = of.axis(int(of.get("axis", 1)), len(shape)) if shape_of(scale) not in ((), (1,)) else 0
    step = of.cast(_along(of, scale, shape, axis, block), FLOAT)
    middle = None if zero is None else of.cast(_along(of, zero, shape, axis, block), FLOAT)
    x = of.cast(x, FLOAT)
    if block:
        x = of.reshape(x, [*shape[:axis], shape[axis] // block, block, *shape[axis + 1 :]])
    return of.cast(of.reshape(_rounded(of, x, step, middle, dtype), shape), dtype)


def _rounded(
    of: Operation, x: ir.Value, scale: ir.Value, zero: ir.Value | None, dtype: ir.DataType
) -> ir.Value:
    """The integers of x, as float32, within the range of a dtype."""
    y = of.emit("ROUND", of.emit("DIV", x, scale, name="steps"), name="rounded")
    if zero is not None:
        y = of.emit("ADD", y, zero, name="shifted")
    low, high = RANGES[dtype]
    return of.emit("MINIMUM", of.emit("MAXIMUM", y, of.like(low, y)), of.like(high, y), name="within")


def _dynamic_quantize(of: Operation) -> list[ir.Value]:
    """DynamicQuantizeLinear(x): the integers, their scale and their zero point."""
    y, scale, zero = dynamically_quantized(of, of.operand(0))
    return [of.cast(y, UINT8), scale, of.cast(zero, UINT8)]


def dynamically_quantized(of: Operation, x: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Quantize numbers by their smallest and their largest.

    Args:
        of: The node that is raised.
        x: Any numbers.

    Returns:
        Their integers from 0 to 255, their scale [] and their zero point [], all float32.
    """
    x = of.cast(x, FLOAT)
    axes = of.indices(list(range(len(shape_of(x)))), "axes")
    low, high = (
        of.emit(limit, of.emit(reduction, x, axes, keepDims=False), of.like(0, x), name=name)
        for limit, reduction, name in (("MINIMUM", "REDUCE_MIN", "low"), ("MAXIMUM", "REDUCE_MAX", "high"))
    )
    scale = of.emit("DIV", of.emit("SUB", high, low), of.like(255, x), name="scale")
    scale = of.emit("MAXIMUM", scale, of.like(float(np.finfo(np.float32).tiny), x), name="scale")
    zero = _rounded(of, of.emit("NEG", low), scale, None, UINT8)
    return _rounded(of, x, scale, zero, UINT8), scale, zero


# ---- products ----------------------------------------------------------------------------------------


def quantized_product(
    of: Operation, x: ir.Value, y: ir.Value, bias: ir.Value | None = None, is_transposed: bool = False
) -> ir.Value | None:
    """Multiply by a constant that is stored in integers, which stay.

    Args:
        of: The node that is raised.
        x: [..., D].
        y: [D, R], or [R, D] if `is_transposed`.
        bias: [R], or None.
        is_transposed: See `y`.

    Returns:
        [..., R]; None if y is something else, or if FULLY_CONNECTED has no such form.
    """
    node = producer_of(y, "TRANSPOSE")
    if node is not None and constant_ints(node.inputs[1]) == [1, 0] and node.inputs[0] is not None:
        y, is_transposed = node.inputs[0], not is_transposed
    stored: Stored | None = of.op.graph.meta.get("stored", {}).get(y)
    if stored is None or len(shape_of(y)) != 2 or x.dtype != FLOAT:
        return None
    columns_axis = 1 if is_transposed else 0
    if (stored.scales.size > 1 and stored.axis != (columns_axis if stored.block else 1 - columns_axis)) or (
        stored.tensor.dtype == INT4 and shape_of(y)[columns_axis] % 2
    ):
        return None
    tensor, scales, zeros = stored.tensor, stored.scales, stored.zeros
    if not is_transposed:
        tensor, scales, zeros = TransposedTensor("", tensor), scales.T, zeros.T
    weights = _weights(of, stored, tensor)
    if not stored.block:
        if weights.meta.get("fields") is None:
            set_axis_quantization(weights, scales, zeros, 0)
        real = of.emit("DEQUANTIZE", weights, dtype=FLOAT, name="real")
        return of.emit("FULLY_CONNECTED", x, real, bias, keepNumDims=True, name="product")
    if weights.meta.get("fields") is None:
        numbers = block_scales(np.ascontiguousarray(scales))
        set_block_quantization(
            weights, add_constant(of.op.graph, numbers, f"{weights.name}_scales"), stored.block
        )
    product = of.emit("FULLY_CONNECTED", x, weights, bias, keepNumDims=True, name="product")
    return with_zero_points(of, product, x, np.ascontiguousarray(-scales * zeros), stored.block)


def _weights(of: Operation, stored: Stored, tensor: ir.TensorProtocol) -> ir.Value:
    """The constant [R, D]; one for all products with it."""
    known = of.op.graph.meta.setdefault("stored_weights", {})
    key = (stored.value, isinstance(tensor, TransposedTensor), stored.block)
    if key not in known:
        known[key] = add_tensor(of.op.graph, tensor, f"{stored.value.name}_integers")
    value = known[key]
    assert isinstance(value, ir.Value)
    return value


def _centered(of: Operation, x: ir.Value, zero: ir.Value | None, is_left: bool) -> ir.Value:
    """x - zero as float32. A constant stays in integers behind a DEQUANTIZE."""
    rank = len(shape_of(x))
    axis = max(0, rank - 2) if is_left else rank - 1
    one = of.constant(1, "one", np.float32)
    stored = _stored(of, x, one, zero, axis, 0)
    if stored is not None and not is_left:
        scales = np.broadcast_to(stored.scales, stored.zeros.shape)
        return _real(of, Stored(x, stored.tensor, scales, stored.zeros, axis, 0))
    x = of.cast(x, FLOAT)
    if zero is None:
        return x
    zero = of.cast(zero, FLOAT)
    size = math.prod(shape_of(zero))
    if len(shape_of(zero)) < 2:
        zero = of.reshape(zero, [size, 1] if is_left and size > 1 else [size] if size > 1 else [])
    return of.emit("SUB", x, zero, name="centered")


def integer_product(of: Operation, x: ir.Value, y: ir.Value) -> ir.Value:
    """Multiply integers that float32 holds, exactly.

    Args:
        of: The node that is raised.
        x: [..., M, D] of up to 9 bits.
        y: [..., D, R] of up to 9 bits.

    Returns:
        int32 [..., M, R].
    """
    left, right = shape_of(x), shape_of(y)
    D = left[-1]
    if D <= EXACT or len(left) < 2 or len(right) < 2:
        if D > EXACT:
            of.refuse(f"float32 does not hold sums of {D} products")
        return of.cast(of.emit("BATCH_MATMUL", x, y, name="product"), INT32)
    size = max(size for size in range(1, EXACT + 1) if D % size == 0)
    if len(right) != 2 or size < 8:
        of.refuse(f"float32 does not hold sums of {D} products")
    rows = math.prod(left[:-1])
    parts = of.transpose(of.reshape(x, [rows, D // size, size]), (1, 0, 2))
    product = of.emit("BATCH_MATMUL", parts, of.reshape(y, [D // size, size, right[1]]), name="products")
    total = of.emit("SUM", of.cast(product, INT32), of.indices([0], "axis"), keepDims=False, name="sum")
    return of.reshape(total, [*left[:-1], right[1]])


def _matmul_integer(of: Operation) -> ir.Value:
    """MatMulInteger(A, B, a_zero_point, b_zero_point)."""
    zeros = [of.operand(index) if of.has(index) else None for index in (2, 3)]
    x, y = of.operand(0), of.operand(1)
    return integer_product(of, _centered(of, x, zeros[0], True), _centered(of, y, zeros[1], False))


def _scaled_product(of: Operation, x: ir.Value, y: ir.Value, scales: list[ir.Value], bias: int) -> ir.Value:
    """The real numbers of a product of integers, and a bias."""
    product = of.cast(integer_product(of, x, y), FLOAT)
    scale = of.emit("MUL", *(of.cast(each, FLOAT) for each in scales), name="scale")
    result = of.emit("MUL", product, scale, name="real")
    return of.emit("ADD", result, of.operand(bias), name="biased") if of.has(bias) else result


def _dynamic_matmul(of: Operation) -> ir.Value:
    """DynamicQuantizeMatMul(A, B, b_scale, b_zero_point, bias)."""
    integers, scale, zero = dynamically_quantized(of, of.operand(0))
    x = of.emit("SUB", integers, zero, name="centered")
    y = _centered(of, of.operand(1), of.operand(3) if of.has(3) else None, False)
    return _scaled_product(of, x, y, [scale, of.operand(2)], 4)


def _matmul_to_float(of: Operation) -> ir.Value:
    """MatMulIntegerToFloat(A, B, a_scale, b_scale, a_zero_point, b_zero_point, bias)."""
    zeros = [of.operand(index) if of.has(index) else None for index in (4, 5)]
    x = _centered(of, of.operand(0), zeros[0], True)
    y = _centered(of, of.operand(1), zeros[1], False)
    return _scaled_product(of, x, y, [of.operand(2), of.operand(3)], 6)


def _quantized_matmul(of: Operation) -> ir.Value:
    """QLinearMatMul(a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero)."""
    x, y = (
        _centered(of, of.operand(0), of.operand(2), True),
        _centered(of, of.operand(3), of.operand(5), False),
    )
    real = _scaled_product(of, x, y, [of.operand(1), of.operand(4)], 8)
    zero = of.operand(7)
    dtype = zero.dtype
    if dtype not in RANGES or dtype is None:
        of.refuse(f"it quantizes to {dtype}")
    step, middle = of.cast(of.operand(6), FLOAT), of.cast(zero, FLOAT)
    return of.cast(_rounded(of, real, step, middle, dtype), dtype)


RULES: Rules = {
    "DequantizeLinear": _dequantize,
    "QuantizeLinear": _quantize,
    "DynamicQuantizeLinear": _dynamic_quantize,
    "MatMulInteger": _matmul_integer,
    "QLinearMatMul": _quantized_matmul,
}
"""Rules of ONNX's own domain."""

ORT_RULES: Rules = {
    "DequantizeLinear": _dequantize,
    "QuantizeLinear": _quantize,
    "DynamicQuantizeMatMul": _dynamic_matmul,
    "MatMulIntegerToFloat": _matmul_to_float,
}
"""Rules of com.microsoft."""
