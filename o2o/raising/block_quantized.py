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


def _weights(of: Operation, stored: ir.Value, bits: int, scales: np.ndarray, block: int) -> ir.Value:
    """The quantized matrix, int4 or int8 [rows, columns]. Nodes that share one share its constant."""
    assert stored.const_value is not None
    rows, blocks = scales.shape
    shape = rows, blocks * block
    known = of.op.graph.meta.setdefault("block_quantized", {})
    key = (stored, of.operand(2), block)
    if key not in known:
        is_signed = stored.dtype == ir.DataType.INT4
        tensor = (
            with_shape(stored.const_value, shape, "")
            if is_signed
            else BitPackedTensor("", stored.const_value, bits, shape)
        )
        weights = known[key] = add_tensor(of.op.graph, tensor, stored.name or "weights")
        if blocks == 1 and tensor.dtype == ir.DataType.INT8:
            set_axis_quantization(weights, scales.reshape(-1))
        else:
            constant = add_constant(of.op.graph, block_scales(scales), f"{weights.name}_scales")
            set_block_quantization(weights, constant, block)
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
    """GatherBlockQuantized(data, indices, scales, zero_points)."""
    table, ids = constant_of(of, 0), of.cast(of.operand(1), INT32)
    shape, dtype = list(shape_of(of.operand(0))), table.dtype
    bits, block = int(of.get("bits", 4)), int(of.get("block_size", 128))
    if dtype != ir.DataType.UINT8:
        bits = 4
    if dtype not in (ir.DataType.UINT8, ir.DataType.UINT4, ir.DataType.INT4):
        of.refuse(f"its table is {dtype}")
    if of.axis(of.get("gather_axis", 0), len(shape)) != 0:
        of.refuse("it gathers along another axis than the first")
    rows, size = shape[0], math.prod(shape[1:])
    columns = size * 8 // bits if dtype == ir.DataType.UINT8 else size
    if of.axis(of.get("quantize_axis", 1), len(shape)) != len(shape) - 1 or columns % block:
        of.refuse(f"its blocks of {block} are not along the last axis of {shape}")
    blocks = columns // block
    scales = of.array(2).astype(np.float32).reshape(rows, blocks)
    weights = _weights(of, table, bits, scales, block)
    flat = of.reshape(ids, [math.prod(shape_of(ids))])
    y = of.emit("EMBEDDING_LOOKUP", flat, weights, dtype=FLOAT, name="rows")
    shifts = scales * (_middle(dtype, bits) - _zeros(of, bits, rows, blocks))
    if shifts.any():
        shift = of.emit("GATHER", of.constant(shifts, "zero_points", np.float32), flat, axis=0, name="shift")
        split = of.reshape(y, [*shape_of(flat), blocks, block])
        y = of.emit("ADD", split, of.reshape(shift, [*shape_of(shift), 1]), name="shifted")
    shape[-1] = columns // math.prod(shape[1:-1])
    return of.cast(of.reshape(y, [*shape_of(ids), *shape[1:]]), of.operand(2).dtype)


def _middle(dtype: ir.DataType | None, bits: int) -> int:
    """The number that stored integers are less than those of the table."""
    return 0 if dtype == ir.DataType.INT4 else 1 << (bits - 1)


def _zeros(of: Operation, bits: int, rows: int, blocks: int) -> np.ndarray:
    """The zero points of a table, float32 [rows, blocks]."""
    table = constant_of(of, 0)
    if not of.has(3):  # bytes have the middle of their range, integers of 4 bits 0
        return np.full((rows, blocks), 1 << (bits - 1) if table.dtype == ir.DataType.UINT8 else 0, np.float32)
    packed = constant_of(of, 3)
    assert packed.const_value is not None
    numbers = packed.const_value.numpy()
    if packed.dtype == ir.DataType.UINT8:
        return block_zero_points(numbers, bits, rows, blocks)
    return numbers.astype(np.float32).reshape(rows, blocks)


ORT_RULES: Rules = {"MatMulNBits": _matmul_nbits, "GatherBlockQuantized": _gather}
"""Rules of com.microsoft."""
