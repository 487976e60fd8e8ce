"""Matrices that com.microsoft stores in blocks: MatMulNBits, GatherBlockQuantized.

    y = x w',  w[n, k] = scale[n, k // block] * (q[n, k] - zero[n, k // block])

The stored integers stay as they are, less the middle of their range. Other zero points become a second
product, with the sum of each block of x: w = scale * (q - middle) + scale * (middle - zero).
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from o2o.formats.bit_packed_tensor import BitPackedTensor
from o2o.formats.quantization_parameters import set_axis_quantization, set_block_quantization
from o2o.formats.tensors import is_constant, with_shape
from o2o.model import shape_of
from o2o.raising.operation import FLOAT, INT32, Operation, Rules
from o2o.rewriting.builder import add_constant, add_tensor
from o2o.rewriting.matchers import producer_of


def constant_of(of: Operation, index: int) -> ir.Value:
    """Return a constant operand, also one that was given another shape.

    Args:
        of: The node that is raised.
        index: The number of the operand.

    Returns:
        The constant, in the shape that it is stored in.

    Raises:
        NotRaised: It is not constant.
    """
    value = of.operand(index)
    while (node := producer_of(value, "RESHAPE")) is not None and node.inputs[0] is not None:
        value = node.inputs[0]
    if not is_constant(value) or value.const_value is None:
        of.refuse(f"operand {index} ({of.operand(index).name}) is not constant")
    return value


def block_zero_points(packed: np.ndarray, bits: int, rows: int, blocks: int) -> np.ndarray:
    """Read zero points.

    Args:
        packed: Floats [rows, blocks], or bytes with a whole number of them for each row.
        bits: The bits of an integer.
        rows: The number of rows.
        blocks: The number of blocks of a row.

    Returns:
        float32 [rows, blocks].
    """
    if packed.dtype != np.uint8:
        return packed.astype(np.float32).reshape(rows, blocks)
    stored = np.unpackbits(packed.reshape(rows, -1), axis=1, bitorder="little")[:, : blocks * bits]
    weights = (1 << np.arange(bits)).astype(np.float32)
    return np.asarray(stored.reshape(rows, blocks, bits) @ weights, np.float32)


def block_scales(numbers: np.ndarray) -> np.ndarray:
    """Return the scales of blocks as Circle stores them: in float16 if nothing is lost and all are positive.

    Args:
        numbers: The scales.

    Returns:
        The same numbers, float16 or float32.
    """
    numbers = numbers.astype(np.float32)
    with np.errstate(over="ignore"):
        half = numbers.astype(np.float16)
    is_exact = np.array_equal(half.astype(np.float32), numbers)
    return half if is_exact and half.min(initial=1) > 0 else numbers


def _matmul_nbits(of: Operation) -> ir.Value:
    """MatMulNBits(A, B, scales, zero_points, g_idx, bias)."""
    x, packed = of.operand(0), constant_of(of, 1)
    bits, block, rows, columns = (int(of.get(key, 4)) for key in ("bits", "block_size", "N", "K"))
    if of.get("weight_prepacked", 0):
        of.refuse("its matrix is packed for one GPU")
    if of.has(4) and not np.array_equal(of.array(4)[:columns], np.arange(columns) // block):
        of.refuse("its columns are in another order (g_idx)")
    blocks = -(-columns // block)
    if math.prod(shape_of(packed)) * 8 != rows * blocks * block * bits or packed.dtype != ir.DataType.UINT8:
        of.refuse(f"B is {packed.dtype} {list(shape_of(packed))}, for {rows} rows of {blocks} blocks")
    scales = of.array(2).astype(np.float32).reshape(rows, blocks)
    dtype, width = x.dtype, blocks * block
    x = of.cast(x, FLOAT)
    if width > columns:
        padding = of.constant(np.zeros([*shape_of(x)[:-1], width - columns]), "padding", np.float32)
        x = of.emit("CONCATENATION", x, padding, axis=len(shape_of(x)) - 1, name="padded")
    weights = _weights(of, packed, bits, scales, block)
    bias = of.cast(of.reshape(of.operand(5), [rows]), FLOAT) if of.has(5) else None
    y = of.emit("FULLY_CONNECTED", x, weights, bias, keepNumDims=True, name="product")
    if of.has(3):
        zeros = block_zero_points(constant_of(of, 3).const_value.numpy(), bits, rows, blocks)  # type: ignore[union-attr]
        y = with_zero_points(of, y, x, scales * ((1 << (bits - 1)) - zeros), block)
    return of.cast(y, dtype)


def _weights(of: Operation, packed: ir.Value, bits: int, scales: np.ndarray, block: int) -> ir.Value:
    """The quantized matrix, int4 or int8 [rows, columns]. Nodes that share one share its constant."""
    assert packed.const_value is not None
    rows, blocks = scales.shape
    known = of.op.graph.meta.setdefault("block_quantized", {})
    key = (packed, of.operand(2), bits, block)
    if key not in known:
        tensor = BitPackedTensor("", packed.const_value, bits, (rows, blocks * block))
        weights = known[key] = add_tensor(of.op.graph, tensor, packed.name or "weights")
        if blocks == 1 and tensor.dtype == ir.DataType.INT8:
            set_axis_quantization(weights, scales.reshape(-1))
        else:
            stored = add_constant(of.op.graph, block_scales(scales), f"{weights.name}_scales")
            set_block_quantization(weights, stored, block)
    value = known[key]
    assert isinstance(value, ir.Value)
    return value


def with_zero_points(of: Operation, y: ir.Value, x: ir.Value, shifts: np.ndarray, block: int) -> ir.Value:
    """Add what zero points contribute to a product.

    Args:
        of: The node that is raised.
        y: The product without zero points, [..., R].
        x: The operand [..., D].
        shifts: What each weight of a block is short of, float32 [R, D / block].
        block: The size of a block.

    Returns:
        y plus the products of the sum of each block of x with `shifts`; y itself if these are 0.
    """
    if not shifts.any():
        return y
    shape = shape_of(x)
    split = of.reshape(x, [*shape[:-1], shape[-1] // block, block])
    axis = of.indices([len(shape)], "axis")
    sums = of.emit("SUM", split, axis, keepDims=False, name="sums_of_blocks")
    weights = of.constant(shifts, "zero_points", np.float32)
    moved = of.emit("FULLY_CONNECTED", sums, weights, None, keepNumDims=True, name="of_zero_points")
    return of.emit("ADD", y, moved, name="shifted")


def _gather(of: Operation) -> ir.Value:
    """GatherBlockQuantized(data, indices, scales, zero_points): rows are looked up as they are stored."""
    table, ids = constant_of(of, 0), of.cast(of.operand(1), INT32)
    scales = of.operand(2)
    shape, dtype = list(shape_of(of.operand(0))), table.dtype
    bits, block = int(of.get("bits", 4)), int(of.get("block_size", 128))
    if of.axis(of.get("gather_axis", 0), len(shape)) != 0:
        of.refuse("it gathers along another axis than the first")
    if of.axis(of.get("quantize_axis", 1), len(shape)) != len(shape) - 1 or len(shape) != 2:
        of.refuse("its blocks are not along the last axis of a matrix")
    if dtype not in (ir.DataType.UINT8, ir.DataType.UINT4, ir.DataType.INT4) or bits not in (4, 8):
        of.refuse(f"its table is {dtype} of {bits} bits")
    if dtype != ir.DataType.UINT8:
        bits = 4
    rows, columns = shape[0], shape[1] * 8 // bits if dtype == ir.DataType.UINT8 else shape[1]
    if columns % block:
        of.refuse(f"{columns} columns are not whole blocks of {block}")
    numbers = _rows(of, table, ids, rows, columns, bits)
    numbers = of.reshape(numbers, [*shape_of(ids), columns // block, block])
    if of.has(3):
        packed = constant_of(of, 3)
        assert packed.const_value is not None
        zeros = packed.const_value.numpy()
        if packed.dtype == ir.DataType.UINT8:
            zeros = block_zero_points(zeros, bits, rows, columns // block)
        middle = 0 if dtype == ir.DataType.INT4 else 1 << (bits - 1)
        shifts = np.asarray(zeros, np.float32).reshape(rows, -1) - middle
        if shifts.any():
            zero = of.emit("GATHER", of.constant(shifts, "zero_points", np.float32), ids, axis=0, name="zero")
            numbers = of.emit("SUB", numbers, of.reshape(zero, [*shape_of(zero), 1]), name="centered")
    elif dtype == ir.DataType.UINT4:  # its zero point is 0
        numbers = of.emit("ADD", numbers, of.like(8, numbers, "middle"), name="unsigned")
    scale = of.cast(of.emit("GATHER", scales, ids, axis=0, name="scale"), FLOAT)
    real = of.emit("MUL", numbers, of.reshape(scale, [*shape_of(scale), 1]), name="scaled")
    return of.cast(of.reshape(real, [*shape_of(ids), columns]), scales.dtype)


def _rows(of: Operation, table: ir.Value, ids: ir.Value, rows: int, columns: int, bits: int) -> ir.Value:
    """Rows of integers of 4 or 8 bits, less the middle of their range, as float32 [..., columns].

    The table has the bytes of the int4 or int8 matrix, so a product with the same matrix shares them.
    """
    assert table.const_value is not None
    size = columns * bits // 8
    if table.dtype == ir.DataType.INT4:
        tensor = with_shape(table.const_value, (rows, size), "", ir.DataType.UINT8)
    else:
        dtype = ir.DataType.UINT8 if bits == 4 else None
        tensor = BitPackedTensor("", table.const_value, bits, (rows, size), dtype)
    stored = add_tensor(of.op.graph, tensor, f"{table.name}_rows")
    stored_rows = of.cast(of.emit("GATHER", stored, ids, axis=0, name="stored_rows"), FLOAT)
    if bits == 8:
        return stored_rows
    high = of.emit("FLOOR", of.emit("MUL", stored_rows, of.like(1 / 16, stored_rows)), name="high")
    low = of.emit("SUB", stored_rows, of.emit("MUL", high, of.like(16.0, high)), name="low")
    pairs = [of.reshape(half, [*shape_of(half), 1]) for half in (low, high)]
    both = of.emit("CONCATENATION", *pairs, axis=len(shape_of(pairs[0])) - 1, name="integers")
    eight, sixteen = of.like(8.0, both, "eight"), of.like(16.0, both, "sixteen")
    # Of 4 bits with a sign: 0 to 7, and then -8 to -1.
    shifted = of.emit("FLOOR_MOD", of.emit("ADD", both, eight), sixteen)
    return of.reshape(of.emit("SUB", shifted, eight, name="signed"), [*shape_of(ids), columns])


ORT_RULES: Rules = {"MatMulNBits": _matmul_nbits, "GatherBlockQuantized": _gather}
"""Rules of com.microsoft."""
