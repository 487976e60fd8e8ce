"""Slice and Gather in a growing graph: rows whose place follows from the length of the past."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from o2o.errors import ModelError
from o2o.model import attribute
from o2o.rewriting.onnx_builder import OnnxBuilder
from o2o.rewriting.static_caches.past_numbers import Kind, PastNumbers
from o2o.rewriting.static_caches.position_numbers import PositionNumbers


def resolve_indices(node: ir.Node, numbers: PastNumbers, positions: PositionNumbers, where: str) -> None:
    """Replace negative indices of a Gather. They count from the end, which is elsewhere in a static graph.

    Args:
        node: A Gather.
        numbers: What follows from the past.
        positions: Builds what follows from the position.
        where: The place of the node in messages.

    Raises:
        ModelError: They count from an end that does not follow the past.
    """
    data, indices = node.inputs[0], node.inputs[1]
    assert data is not None
    assert indices is not None
    shapes = numbers.shapes(data)
    if shapes is None or numbers.kind(indices) is not Kind.FIXED:
        return
    axis = attribute(node, "axis", 0) % len(shapes[0])
    chosen = numbers.numbers(indices)
    if axis not in numbers.growing_axes(data) or not (chosen < 0).any():
        return
    lengths = {shape[axis] - past for shape, past in zip(shapes, numbers.pasts, strict=True)}
    if len(lengths) > 1:
        raise ModelError(f"{where}: its index counts from an end that does not follow the past")
    offset = np.where(chosen < 0, chosen + lengths.pop(), chosen).astype(np.int64)
    line = positions.line(offset, (chosen < 0).astype(np.int64), ir.DataType.INT64)
    node.replace_input_with(1, line)


def static_slice(
    node: ir.Node,
    data: ir.Value,
    numbers: PastNumbers,
    positions: PositionNumbers,
    op: OnnxBuilder,
    where: str,
) -> ir.Value | None:
    """Return the rows of a Slice. Those that keep their place are a Slice, those that move are a Gather.

    Args:
        node: A Slice.
        data: What it takes rows of, in the static graph.
        numbers: What follows from the past.
        positions: Builds what follows from the position.
        op: Builds in front of the node.
        where: The place of the node in messages.

    Returns:
        The rows; None if the node stays as it is.

    Raises:
        ModelError: Its bounds are not known, or the number of rows follows the past.
    """
    original = node.inputs[0]
    assert original is not None
    shapes = numbers.shapes(original)
    bounds = [*node.inputs[1:], *[None] * (5 - len(node.inputs))]
    if shapes is None or any(v is not None and numbers.kind(v) is Kind.VARYING for v in bounds):
        if any(value is not None and value in numbers.kinds for value in bounds):
            raise ModelError(f"{where}: its bounds are not known")
        return None
    slices = [_slices(bounds, shape, numbers, number) for number, shape in enumerate(shapes)]
    value, dims = data, list(shapes[0])
    for axis, whole in enumerate(shapes[0]):
        ranges = [range(*one[axis].indices(shape[axis])) for one, shape in zip(slices, shapes, strict=True)]
        rows, is_growing = ranges[0], len({shape[axis] for shape in shapes}) > 1
        dims[axis] = len(rows)
        if len({(one.start, one.step) for one in ranges}) == 1:
            if is_growing and rows.step < 0:
                raise ModelError(f"{where} reverses something that grows")
            if rows != range(whole):
                value = _constant_slice(op, value, axis, rows, dims)
            continue
        line = numbers.line([np.asarray(one.start) for one in ranges])
        if line is None or len({len(one) for one in ranges}) != 1 or rows.step != 1:
            raise ModelError(f"{where} takes rows of the past whose number depends on the past")
        starts = line.offset + np.arange(len(rows))
        indices = positions.line(starts, np.full(len(rows), line.slope), ir.DataType.INT64)
        value = op.node("Gather", [value, indices], dims, name="moving", axis=axis)
    return value


def _slices(
    bounds: Sequence[ir.Value | None], shape: tuple[int, ...], numbers: PastNumbers, number: int
) -> list[slice]:
    """The bounds of each axis, at one length of the past."""

    def integers(value: ir.Value | None) -> list[int] | None:
        return None if value is None else [int(n) for n in numbers.numbers(value, number).reshape(-1)]

    starts, stops, axes, steps = map(integers, bounds)
    assert starts is not None
    assert stops is not None
    result = [slice(None)] * len(shape)
    axes, steps = axes or list(range(len(starts))), steps or [1] * len(starts)
    for start, end, axis, step in zip(starts, stops, axes, steps, strict=True):
        result[axis] = slice(start, None if step < 0 and end < -shape[axis] else end, step)
    return result


def _constant_slice(
    op: OnnxBuilder, value: ir.Value, axis: int, rows: range, dims: Sequence[int]
) -> ir.Value:
    stop = rows.stop if rows.step > 0 or rows.stop >= 0 else -(1 << 31)
    bounds = {"start": rows.start, "end": stop, "axis": axis, "step": rows.step}
    operands = [op.constant(np.asarray([number], np.int64), name) for name, number in bounds.items()]
    return op.node("Slice", [value, *operands], list(dims), name="slice")
