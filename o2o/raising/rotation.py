"""Rotary position embedding: RotaryEmbedding of ONNX and of com.microsoft.

Rotations become ROPE, which rotates halves. Neighbors that are rotated (`interleaved`) are moved to halves
before it and back behind it. Features beyond the rotated ones pass by.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import constant_array
from o2o.model import shape_of
from o2o.raising.operation import FLOAT, INT32, Operation, Rules


def tables_of_positions(of: Operation, cache: ir.Value, positions: ir.Value, tokens: int) -> ir.Value:
    """Look up the rows of a table of angles.

    Args:
        of: The node that is raised.
        cache: [positions, R / 2]: sines or cosines.
        positions: Integers [B, T], or [1]: the first position of each text.
        tokens: The number of tokens T.

    Returns:
        [B, T, R / 2].
    """
    positions = of.cast(positions, INT32)
    shape = shape_of(positions)
    if len(shape) < 2:
        positions = of.reshape(positions, [math.prod(shape), 1])
        if tokens > 1:
            steps = of.constant(np.arange(tokens, dtype=np.int32)[None], "steps", np.int32)
            positions = of.emit("ADD", positions, steps, name="positions")
    return of.emit("GATHER", cache, positions, axis=0, batchDims=0, name="angles")


def rotate(of: Operation, x: ir.Value, cos: ir.Value, sin: ir.Value, interleaved: bool = False) -> ir.Value:
    """Emit the rotation of the first R features of each head, in float32.

    Args:
        of: The node that is raised.
        x: Features, [B, N, T, H].
        cos: Cosines, [B or 1, T, R / 2].
        sin: Sines, [B or 1, T, R / 2].
        interleaved: Whether neighbors are rotated, rather than halves.

    Returns:
        [B, N, T, H], in the dtype of x.

    Raises:
        NotRaised: The tables do not fit.
    """
    dtype = x.dtype
    B, N, T, H = shape = shape_of(x)
    batch, tokens, half = shape_of(cos)
    R = 2 * half
    if shape_of(sin) != shape_of(cos) or tokens != T or batch not in (1, B) or R > H:
        of.refuse(f"tables {list(shape_of(cos))} and {list(shape_of(sin))} do not fit to {list(shape)}")
    x = of.cast(x, FLOAT)
    rotated = x if R == H else of.op.slice(x, [0] * 4, [B, N, T, R], "rotated_features")
    if interleaved:
        rotated = _moved(of, rotated, [half, 2])
    tables = [_full_table(of, table) for table in (sin, cos)]
    rotated = of.emit("ROPE", rotated, *tables, mode=0, name="rotated")
    if interleaved:
        rotated = _moved(of, rotated, [2, half])
    if R < H:
        rest = of.op.slice(x, [0, 0, 0, R], [B, N, T, H - R], "other_features")
        rotated = of.emit("CONCATENATION", rotated, rest, axis=3, name="features")
    return of.cast(rotated, dtype)


def _full_table(of: Operation, table: ir.Value) -> ir.Value:
    """A table [B, T, R / 2] for both halves, [B, 1, T, R], float32."""
    B, T, half = shape_of(table)
    array = constant_array(table)
    if array is not None:
        return of.constant(np.concatenate([array, array], -1)[:, None], "table", np.float32)
    table = of.reshape(of.cast(table, FLOAT), [B, 1, T, half])
    return of.emit("CONCATENATION", table, table, axis=3, name="table")


def _moved(of: Operation, x: ir.Value, sizes: list[int]) -> ir.Value:
    """The features of each head [a, b] as [b, a]."""
    shape = shape_of(x)
    x = of.reshape(x, [math.prod(shape[:3]), *sizes])
    return of.reshape(of.transpose(x, (0, 2, 1)), shape)


def rotate_tokens(
    of: Operation, x: ir.Value, cos: ir.Value, sin: ir.Value, heads: int, interleaved: bool
) -> ir.Value:
    """Rotate features by token or by head.

    Args:
        of: The node that is raised.
        x: Features, [B, T, heads * H] or [B, N, T, H].
        cos: Cosines, [B or 1, T, R / 2].
        sin: Sines, [B or 1, T, R / 2].
        heads: The number of heads of 3-dimensional x.
        interleaved: See `rotate`.

    Returns:
        The rotated features in the shape of x.

    Raises:
        NotRaised: The heads do not divide the features.
    """
    shape = shape_of(x)
    if len(shape) == 4:
        return rotate(of, x, cos, sin, interleaved)
    B, T, D = shape
    if not heads or D % heads:
        of.refuse(f"{heads} heads do not divide {D} features")
    by_head = of.transpose(of.reshape(x, [B, T, heads, D // heads]), (0, 2, 1, 3))
    return of.reshape(of.transpose(rotate(of, by_head, cos, sin, interleaved), (0, 2, 1, 3)), shape)


def _onnx_rotary(of: Operation) -> ir.Value:
    """RotaryEmbedding(X, cos_cache, sin_cache, position_ids). Without positions the caches are by token."""
    x, cos, sin = (of.operand(index) for index in range(3))
    shape = shape_of(x)
    if of.has(3):
        tokens = shape[-2]
        cos, sin = (tables_of_positions(of, table, of.operand(3), tokens) for table in (cos, sin))
    size = of.get("rotary_embedding_dim", 0)
    if size and size != 2 * shape_of(cos)[-1]:
        of.refuse(f"it rotates {size} features by tables of {shape_of(cos)[-1]}")
    return rotate_tokens(of, x, cos, sin, of.get("num_heads", 0), bool(of.get("interleaved", 0)))


def _ort_rotary(of: Operation) -> ir.Value:
    """com.microsoft.RotaryEmbedding(input, position_ids, cos_cache, sin_cache)."""
    x, positions, cos, sin = (of.operand(index) for index in range(4))
    if of.get("is_packed_batching", 0):
        of.refuse("it takes texts that are packed into one row")
    if of.get("scale", 1.0) != 1:
        of.refuse(f"it has the scale {of.get('scale')}")
    shape = shape_of(x)
    size = of.get("rotary_embedding_dim", 0) or 2 * shape_of(cos)[1]
    if size != 2 * shape_of(cos)[1]:
        of.refuse(f"it rotates {size} features by tables of {shape_of(cos)[1]}")
    tokens = shape[-2]
    cos, sin = (tables_of_positions(of, table, positions, tokens) for table in (cos, sin))
    heads = of.get("num_heads", 0)
    if not heads and len(shape) == 3:
        heads = shape[-1] // size  # the tables are of whole heads
    return rotate_tokens(of, x, cos, sin, heads, bool(of.get("interleaved", 0)))


RULES: Rules = {"RotaryEmbedding": _onnx_rotary}
"""Rules of ONNX's own domain."""

ORT_RULES: Rules = {"RotaryEmbedding": _ort_rotary}
"""Rules of com.microsoft."""
