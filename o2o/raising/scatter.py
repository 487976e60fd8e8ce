"""Writes into a tensor. Consecutive rows, as of a KV cache, become DYNAMIC_UPDATE_SLICE."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import constant_array
from o2o.model import attribute, shape_of
from o2o.operators.reference import NotEvaluable, function_of, unknown_sources
from o2o.raising.indexing import coordinates, from_front
from o2o.raising.operation import BOOL, INT32, Operation, Rules
from o2o.rewriting.matchers import constant_ints, producer_of

_PROBES = (0, 1, 7)
"""Positions at which computed rows are proven to be consecutive."""


def write_rows(of: Operation, x: ir.Value, rows: ir.Value, axis: int, start: ir.Value) -> ir.Value:
    """Write consecutive rows.

    Args:
        of: The operation.
        x: The tensor.
        rows: The new rows, of the shape of `x` but for the axis.
        axis: The axis along which they are rows.
        start: The place of the first one, one integer.

    Returns:
        The tensor with these rows.
    """
    transpose = producer_of(x, "TRANSPOSE")
    axes = constant_ints(transpose.inputs[1]) if transpose is not None else None
    if transpose is not None and axes is not None:  # written where it is: a cache is updated in place
        source = transpose.inputs[0]
        assert source is not None
        back = [axes.index(place) for place in range(len(axes))]
        return of.transpose(write_rows(of, source, of.transpose(rows, back), axes[axis], start), axes)
    place = of.reshape(of.cast(start, INT32), [1])
    zeros = [
        of.indices([0] * count, "zeros") if count else None for count in (axis, len(shape_of(x)) - axis - 1)
    ]
    parts = [part for part in (zeros[0], place, zeros[1]) if part is not None]
    begin = parts[0] if len(parts) == 1 else of.emit("CONCATENATION", *parts, axis=0)
    return of.emit("DYNAMIC_UPDATE_SLICE", x, rows, begin)


def _first(of: Operation, rows: ir.Value) -> ir.Value | None:
    """The first of a vector of rows, if they are consecutive."""
    count = shape_of(rows)[0]
    if count == 1:
        return of.reshape(rows, [1])
    array = constant_array(rows)
    if array is not None:
        is_row = np.array_equal(array, np.arange(array[0], array[0] + count))
        return of.constant(array[:1].astype(np.int32), "first") if is_row else None
    try:
        sources = unknown_sources(rows)
        if len(sources) != 1:
            return None
        (source,) = sources
        if int(np.prod(shape_of(source))) != 1 or source.dtype is None:
            return None
        rows_of = function_of(rows, source)
        for position in _PROBES:
            numbers = rows_of(np.full(shape_of(source), position, source.dtype.numpy()))
            if not np.array_equal(numbers, np.arange(numbers[0], numbers[0] + count)):
                return None
    except NotEvaluable:
        return None
    return of.emit("SLICE", rows, of.indices([0], "begin"), of.indices([1], "size"))


def _scatter_nd(of: Operation) -> ir.Value:
    x, indices, updates = of.operand(0), of.operand(1), of.operand(2)
    shape, width = shape_of(x), shape_of(indices)[-1]
    reduction = _text(of.get("reduction", "none"))
    if reduction == "none":
        written = _written_rows(of, x, indices, updates)
        if written is not None:
            return written
    array = constant_array(indices)
    if array is not None and (array < 0).any():
        sizes = np.asarray(shape[:width])
        indices = of.constant(np.where(array < 0, array + sizes, array), "indices")
    return scatter(of, x, of.cast(indices, INT32), updates, reduction)


def _written_rows(of: Operation, x: ir.Value, indices: ir.Value, updates: ir.Value) -> ir.Value | None:
    """ScatterND as a write of consecutive rows, or None.

    The coordinates belong to whole rows along one axis. Before that axis they are all places in order; on the
    axis they are consecutive.
    """
    shape, width = shape_of(x), shape_of(indices)[-1]
    axis = width - 1
    places = shape_of(indices)[:-1]
    if len(places) == width and places[:axis] == shape[:axis]:
        columns = [_column(of, indices, index) for index in range(width)]
        rows = columns[axis]
        if rows is None or any(
            not _is_grid(column, places, index) for index, column in enumerate(columns[:axis])
        ):
            return None
        one = (
            of.emit(
                "SLICE",
                rows,
                of.indices([0] * axis + [0], "begin"),
                of.indices([1] * axis + [places[axis]], "size"),
            )
            if axis and any(dim != 1 for dim in places[:axis])
            else rows
        )
        first = _first(of, of.reshape(one, [places[axis]]))
    elif width == 1 and len(places) == 1:
        first = _first(of, of.reshape(indices, [places[0]]))
    else:
        return None
    if first is None:
        return None
    return write_rows(
        of, x, of.reshape(updates, [*shape[:axis], places[-1], *shape[axis + 1 :]]), axis, first
    )


def _column(of: Operation, indices: ir.Value, index: int) -> ir.Value | None:
    """The coordinates on one axis, without the last axis of `indices`."""
    shape = shape_of(indices)
    if shape[-1] == 1:
        return of.reshape(indices, shape[:-1])
    joined = producer_of(indices, "CONCATENATION")
    if joined is not None and attribute(joined, "axis", 0) % len(shape) == len(shape) - 1:
        parts = [part for part in joined.inputs if part is not None]
        if all(shape_of(part)[-1] == 1 for part in parts):
            return of.reshape(parts[index], shape[:-1])
    array = constant_array(indices)
    return None if array is None else of.constant(array[..., index], "column")


def _is_grid(column: ir.Value | None, places: Sequence[int], axis: int) -> bool:
    """Whether the coordinates on an axis are all of its places, in order."""
    if column is None:
        return False
    array = constant_array(column)
    if array is None:
        try:
            from o2o.operators.reference import evaluate

            array = evaluate(column, {})
        except NotEvaluable:
            return False
    return np.array_equal(array, np.indices(tuple(places))[axis])


def scatter(of: Operation, x: ir.Value, indices: ir.Value, updates: ir.Value, reduction: str) -> ir.Value:
    """Write elements or slices at any coordinates.

    Args:
        of: The operation.
        x: The tensor.
        indices: int32 coordinates [..., axes].
        updates: What is written at each.
        reduction: `none` or `add`.

    Returns:
        The tensor with these elements.
    """
    shape = shape_of(x)
    to = of.indices(list(shape), "shape")
    if reduction == "add":
        return of.emit("ADD", x, of.emit("SCATTER_ND", indices, updates, to, dtype=x.dtype, shape=shape))
    if reduction != "none":
        of.refuse(f"Circle has no scatter with the reduction {reduction}")
    written = of.emit("SCATTER_ND", indices, updates, to, dtype=x.dtype, shape=shape)
    ones = of.constant(np.ones(shape_of(updates), np.int32), "ones")
    count = of.emit("SCATTER_ND", indices, ones, to, dtype=INT32, shape=shape)
    is_written = of.emit("NOT_EQUAL", count, of.constant(np.int32(0), "zero"), dtype=BOOL)
    return of.emit("SELECT_V2", is_written, written, x, dtype=x.dtype)


def _scatter_elements(of: Operation) -> ir.Value:
    x, indices, updates = of.operand(0), of.operand(1), of.operand(2)
    axis = of.axis(int(of.get("axis", 0)), len(shape_of(x)))
    indices = from_front(of, indices, shape_of(x)[axis])
    reduction = _text(of.get("reduction", "none"))
    if reduction == "none" and (written := _written_elements(of, x, indices, updates, axis)) is not None:
        return written
    return scatter(of, x, coordinates(of, indices, axis), updates, reduction)


def _written_elements(
    of: Operation, x: ir.Value, indices: ir.Value, updates: ir.Value, axis: int
) -> ir.Value | None:
    """ScatterElements as a write of consecutive rows, whose indices are repeated along the other axes."""
    shape, places = shape_of(x), shape_of(indices)
    if (*shape[:axis], *shape[axis + 1 :]) != (*places[:axis], *places[axis + 1 :]):
        return None
    others = [place for place in range(len(shape)) if place != axis and places[place] != 1]
    source = producer_of(indices, "BROADCAST_TO")
    if others and (source is None or source.inputs[0] is None):
        return None
    rows = source.inputs[0] if source is not None else indices
    assert rows is not None
    if int(np.prod(shape_of(rows))) != places[axis] or (
        others and shape_of(rows)[axis - len(shape)] != places[axis]
    ):
        return None
    first = _first(of, of.reshape(rows, [places[axis]]))
    return None if first is None else write_rows(of, x, updates, axis, first)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


RULES: Rules = {
    "ScatterND": _scatter_nd,
    "ScatterElements": _scatter_elements,
    "Scatter": _scatter_elements,
}
