"""Lookups by indices. Computed ones are taken to count from the front, as Circle's do."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import constant_array
from o2o.model import shape_of
from o2o.raising.operation import INT32, INT64, Operation, Rules


def from_front(of: Operation, indices: ir.Value, size: int) -> ir.Value:
    """Return indices that count from the front.

    Args:
        of: The operation.
        indices: Indices. Those of a constant may count from the end.
        size: The size of their axis.

    Returns:
        The indices; the value itself if it is computed.
    """
    array = constant_array(indices)
    if array is None or not (array < 0).any():
        return indices
    return of.constant(np.where(array < 0, array + size, array).astype(array.dtype), "indices")


def _gather(of: Operation) -> ir.Value:
    x, indices = of.operand(0), of.operand(1)
    axis = of.axis(int(of.get("axis", 0)), len(shape_of(x)))
    return of.emit("GATHER", x, from_front(of, indices, shape_of(x)[axis]), axis=axis)


def coordinates(of: Operation, indices: ir.Value, axis: int) -> ir.Value:
    """Return the whole coordinates of elements that have the places of `indices` on all axes but one.

    Args:
        of: The operation.
        indices: The place on the axis, of each element.
        axis: The axis.

    Returns:
        int32, [*shape of indices, rank].
    """
    shape = shape_of(indices)
    places = of.reshape(of.cast(indices, INT32), [*shape, 1])
    grid = np.moveaxis(np.indices(shape, np.int32), 0, -1)
    before, behind = grid[..., :axis], grid[..., axis + 1 :]
    parts = [of.constant(before, "before")] if axis else []
    parts += [places] + ([of.constant(behind, "behind")] if axis + 1 < len(shape) else [])
    return parts[0] if len(parts) == 1 else of.emit("CONCATENATION", *parts, axis=len(shape))


def _gather_elements(of: Operation) -> ir.Value:
    x, indices = of.operand(0), of.operand(1)
    axis = of.axis(int(of.get("axis", 0)), len(shape_of(x)))
    indices = from_front(of, indices, shape_of(x)[axis])
    return of.emit("GATHER_ND", x, coordinates(of, indices, axis))


def _gather_nd(of: Operation) -> ir.Value:
    x, indices, batch = of.operand(0), of.operand(1), int(of.get("batch_dims", 0))
    array = constant_array(indices)
    if array is not None and (array < 0).any():
        sizes = np.asarray(shape_of(x)[batch : batch + shape_of(indices)[-1]])
        indices = of.constant(np.where(array < 0, array + sizes, array).astype(array.dtype), "indices")
    if batch:
        lead = shape_of(indices)[:-1]
        grid = np.moveaxis(np.indices(lead, np.int32), 0, -1)[..., :batch]
        indices = of.emit(
            "CONCATENATION", of.constant(grid, "batch"), of.cast(indices, INT32), axis=len(lead)
        )
    return of.emit("GATHER_ND", x, indices)


def _one_hot(of: Operation) -> ir.Value:
    indices, depth, values = of.operand(0), of.ints(1)[0], of.operand(2)
    shape = shape_of(indices)
    axis = of.axis(int(of.get("axis", -1)), len(shape) + 1)
    off, on = (
        of.reshape(of.emit("SLICE", values, of.indices([i], "begin"), of.indices([1], "size")), [])
        for i in (0, 1)
    )
    places = of.cast(indices, INT32)
    count = of.constant(np.int32(depth), "depth")
    wrapped = of.emit("FLOOR_MOD", places, count)  # those from the end; others are none of the classes
    is_inside = of.emit("LESS", places, count, dtype=ir.DataType.BOOL)
    is_known = of.emit(
        "GREATER_EQUAL", places, of.constant(np.int32(-depth), "first"), dtype=ir.DataType.BOOL
    )
    inside = of.emit("LOGICAL_AND", is_inside, is_known, dtype=ir.DataType.BOOL)
    places = of.emit("SELECT_V2", inside, wrapped, of.constant(np.int32(-1), "none"), dtype=INT32)
    result = [*shape[:axis], depth, *shape[axis:]]
    last = -1 if axis == len(shape) else axis
    return of.emit("ONE_HOT", places, count, on, off, dtype=values.dtype, shape=result, axis=last)


def _top_k(of: Operation) -> Sequence[ir.Value]:
    x = of.operand()
    count = int(of.get("k", 0)) or of.ints(1)[0]
    shape = shape_of(x)
    axis = of.axis(int(of.get("axis", -1)), len(shape))
    order = [*(place for place in range(len(shape)) if place != axis), axis]
    back = [order.index(place) for place in range(len(shape))]
    smallest = not of.get("largest", 1)
    moved = of.transpose(x, order)
    moved = of.emit("NEG", moved) if smallest else moved
    result = [*(shape[place] for place in order[:-1]), count]
    k = of.constant(np.int32(count), "k")
    values, indices = of.emit_all("TOPK_V2", [moved, k], 2, [x.dtype, INT32], [result, result])
    values = of.emit("NEG", values) if smallest else values
    return of.transpose(values, back), of.cast(of.transpose(indices, back), INT64)


def _reverse_sequence(of: Operation) -> ir.Value:
    x = of.operand()
    seq, batch = int(of.get("time_axis", 0)), int(of.get("batch_axis", 1))
    lengths = of.cast(of.operand(1), INT32)
    return of.emit("REVERSE_SEQUENCE", x, lengths, shape=shape_of(x), seqDim=seq, batchDim=batch)


def _compress(of: Operation) -> ir.Value:
    chosen = np.flatnonzero(of.array(1))
    x, axis = of.operand(), of.get("axis")
    if axis is None:
        x, axis = of.reshape(x, [math.prod(shape_of(x))]), 0
    axis = of.axis(int(axis), len(shape_of(x)))
    return of.emit("GATHER", x, of.indices(chosen.tolist(), "indices"), axis=axis)


RULES: Rules = {
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "OneHot": _one_hot,
    "TopK": _top_k,
    "ReverseSequence": _reverse_sequence,
    "Compress": _compress,
}
