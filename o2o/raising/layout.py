"""Operators that move numbers: shapes, axes, parts and repetitions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import is_plain
from o2o.formats.transposed_tensor import TransposedTensor
from o2o.model import shape_of
from o2o.raising.operation import Operation, Rules
from o2o.rewriting.builder import add_tensor

_LARGEST = (1 << 31) - 1


def _reshape(of: Operation) -> ir.Value:
    x = of.operand()
    shape = of.ints_of("shape", 1)
    if shape is None:
        of.refuse("it has no shape")
    if not of.get("allowzero", 0):
        shape = [shape_of(x)[axis] if dim == 0 else dim for axis, dim in enumerate(shape)]
    known = math.prod(dim for dim in shape if dim != -1)
    size = math.prod(shape_of(x))
    shape = [size // max(known, 1) if dim == -1 else dim for dim in shape]
    if math.prod(shape) != size:
        of.refuse(f"{list(shape_of(x))} does not have the elements of {shape}")
    return of.reshape(x, shape)


def _flatten(of: Operation) -> ir.Value:
    x, axis = of.operand(), int(of.get("axis", 1))
    shape = shape_of(x)
    axis = axis + len(shape) if axis < 0 else axis
    return of.reshape(x, [math.prod(shape[:axis]), math.prod(shape[axis:])])


def _squeeze(of: Operation) -> ir.Value:
    x, axes = of.operand(), of.ints_of("axes", 1)
    shape = shape_of(x)
    gone = (
        {axis for axis, dim in enumerate(shape) if dim == 1}
        if axes is None
        else {of.axis(axis, len(shape)) for axis in axes}
    )
    return of.reshape(x, [dim for axis, dim in enumerate(shape) if axis not in gone])


def _unsqueeze(of: Operation) -> ir.Value:
    x, axes = of.operand(), of.ints_of("axes", 1) or []
    rank = len(shape_of(x)) + len(axes)
    new = {of.axis(axis, rank) for axis in axes}
    dims = iter(shape_of(x))
    return of.reshape(x, [1 if axis in new else next(dims) for axis in range(rank)])


def _transpose(of: Operation) -> ir.Value:
    x = of.operand()
    axes = of.get("perm") or list(range(len(shape_of(x))))[::-1]
    if (
        list(axes) == [1, 0]
        and is_plain(x)
        and x.const_value is not None
        and x.const_value.dtype.bitwidth >= 8
    ):
        return add_tensor(of.op.graph, TransposedTensor("", x.const_value), f"{of.op.prefix}transposed")
    return of.transpose(x, axes)


def _concat(of: Operation) -> ir.Value:
    parts = [value for value in of.operands if value is not None]
    axis = of.axis(int(of.get("axis", 0)), len(shape_of(parts[0])))
    filled = [part for part in parts if shape_of(part)[axis] != 0] or parts[:1]
    return filled[0] if len(filled) == 1 else of.emit("CONCATENATION", *filled, axis=axis)


def _split(of: Operation) -> Sequence[ir.Value]:
    x, count = of.operand(), len(of.node.outputs)
    axis = of.axis(int(of.get("axis", 0)), len(shape_of(x)))
    size = shape_of(x)[axis]
    sizes = of.ints_of("split", 1)
    if sizes is None:
        part = -(-size // count)
        sizes = [min(part, size - start) for start in range(0, size, part)]
    if len(sizes) != count or sum(sizes) != size:
        of.refuse(f"its parts {sizes} are not {count} of axis {axis} of {list(shape_of(x))}")
    if count == 1:
        return [x]
    if len(set(sizes)) == 1:
        return of.emit_all("SPLIT", [of.indices(axis, "axis"), x], count, x.dtype, numSplits=count)
    operands = [x, of.indices(sizes, "sizes"), of.indices(axis, "axis")]
    return of.emit_all("SPLIT_V", operands, count, x.dtype, numSplits=count)


def _slice(of: Operation) -> ir.Value:
    x = of.operand()
    shape = shape_of(x)
    starts, stops, axes, steps = (
        (of.ints_of(name, index) for name, index in (("starts", 1), ("ends", 2), ("axes", 3), ("steps", 4)))
        if _has_constant_bounds(of)
        else _computed_bounds(of)
    )
    assert starts is not None
    assert stops is not None
    axes = list(range(len(starts))) if axes is None else [of.axis(axis, len(shape)) for axis in axes]
    steps = [1] * len(starts) if steps is None else steps
    begin, end, stride = [0] * len(shape), list(shape), [1] * len(shape)
    for axis, first, last, step in zip(axes, starts, stops, steps, strict=True):
        begin[axis], end[axis], _ = slice(_bounded(first), _bounded(last), step).indices(shape[axis])
        stride[axis] = step
    if all(step == 1 for step in stride):
        size = [max(0, last - first) for first, last in zip(begin, end, strict=True)]
        if tuple(size) == shape:
            return x
        return of.emit("SLICE", x, of.indices(begin, "begin"), of.indices(size, "size"))
    # An end before the first element has no number of its own: -1 means the last one.
    mask = sum(1 << axis for axis, last in enumerate(end) if last < 0)
    bounds = [
        of.indices(numbers, name) for name, numbers in (("begin", begin), ("end", end), ("strides", stride))
    ]
    return of.emit("STRIDED_SLICE", x, *bounds, endMask=mask)


def _bounded(bound: int) -> int:
    return max(-_LARGEST, min(bound, _LARGEST))


def _has_constant_bounds(of: Operation) -> bool:
    return all(value is None or is_plain(value) for value in of.operands[1:])


def _computed_bounds(of: Operation) -> tuple[list[int] | None, ...]:
    of.refuse("its bounds are computed, so the shape of its result is not fixed")


def _expand(of: Operation) -> ir.Value:
    x = of.operand()
    return of.broadcast(x, np.broadcast_shapes(shape_of(x), tuple(of.ints(1))))


def _tile(of: Operation) -> ir.Value:
    x, times = of.operand(), of.ints(1)
    if all(count == 1 for count in times):
        return x
    return of.emit("TILE", x, of.indices(times, "multiples"))


def _pad(of: Operation) -> ir.Value:
    x, mode = of.operand(), of.get("mode", "constant")
    mode = mode.decode() if isinstance(mode, bytes) else mode
    rank = len(shape_of(x))
    pads = of.ints_of("pads", 1)
    if pads is None:
        of.refuse("it has no pads")
    axes = [of.axis(axis, rank) for axis in of.ints(3)] if of.has(3) else list(range(rank))
    sizes = [[0, 0] for _ in range(rank)]
    for place, axis in enumerate(axes):
        sizes[axis] = [pads[place], pads[place + len(axes)]]
    if any(size < 0 for pair in sizes for size in pair):
        begin = [max(0, -low) for low, _ in sizes]
        rest = [dim + min(0, low) + min(0, high) for dim, (low, high) in zip(shape_of(x), sizes, strict=True)]
        x = of.emit("SLICE", x, of.indices(begin, "begin"), of.indices(rest, "size"))
        sizes = [[max(0, low), max(0, high)] for low, high in sizes]
    if not any(size for pair in sizes for size in pair):
        return x
    paddings = of.constant(np.asarray(sizes, np.int32), "paddings")
    if mode == "constant":
        if of.has(2) or of.get("value", 0.0) != 0:
            number = of.operand(2) if of.has(2) else of.like(of.get("value", 0.0), x)
            return of.emit("PADV2", x, paddings, of.reshape(number, [1]))
        return of.emit("PAD", x, paddings)
    if mode == "reflect":
        shape = [dim + low + high for dim, (low, high) in zip(shape_of(x), sizes, strict=True)]
        return of.emit("MIRROR_PAD", x, paddings, shape=shape, mode=0)
    if mode not in ("edge", "wrap"):
        of.refuse(f"Circle has no padding of mode {mode}")
    for axis, (low, high) in enumerate(sizes):
        if low or high:
            places = np.pad(np.arange(shape_of(x)[axis]), (low, high), mode)  # type: ignore[arg-type]
            x = of.emit("GATHER", x, of.indices(places.tolist(), "places"), axis=axis)
    return x


def _trilu(of: Operation) -> ir.Value:
    x = of.operand()
    offset = of.ints(1)[0] if of.has(1) else 0
    rows, columns = shape_of(x)[-2:]
    ones = np.ones((rows, columns), bool)
    inside = np.triu(ones, offset) if of.get("upper", 1) else np.tril(ones, offset)
    return of.emit("SELECT_V2", of.constant(inside, "triangle"), x, of.like(0, x), dtype=x.dtype)


def _depth_to_space(of: Operation) -> ir.Value:
    x, block, mode = of.operand(), int(of.get("blocksize")), of.get("mode", "DCR")
    batch, depth, rows, columns = shape_of(x)
    inner = depth // block**2
    if mode in ("DCR", b"DCR"):
        shape, axes = [batch, block, block, inner, rows, columns], [0, 3, 4, 1, 5, 2]
    else:
        shape, axes = [batch, inner, block, block, rows, columns], [0, 1, 4, 2, 5, 3]
    return of.reshape(of.transpose(of.reshape(x, shape), axes), [batch, inner, rows * block, columns * block])


def _space_to_depth(of: Operation) -> ir.Value:
    x, block, mode = of.operand(), int(of.get("blocksize")), of.get("mode", "DCR")
    batch, depth, rows, columns = shape_of(x)
    y = of.reshape(x, [batch, depth, rows // block, block, columns // block, block])
    axes = [0, 3, 5, 1, 2, 4] if mode in ("DCR", b"DCR") else [0, 1, 3, 5, 2, 4]
    return of.reshape(of.transpose(y, axes), [batch, depth * block**2, rows // block, columns // block])


RULES: Rules = {
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Expand": _expand,
    "Tile": _tile,
    "Pad": _pad,
    "Trilu": _trilu,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
}
