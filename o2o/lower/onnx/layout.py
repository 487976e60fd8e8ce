"""Circle's operators that move elements, in ONNX, for T tokens at a time (`o2o.lower.onnx.per_token`).

Axes are counted from the end, because leading axes are added.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from o2o.lower.onnx.builder import Dim, dims
from o2o.lower.onnx.fused_activation import with_activation
from o2o.lower.onnx.per_token import Rule, TokenValues, token_shape
from o2o.model import attribute, shape_of
from o2o.operators.reference import NotEvaluable, slice_bounds
from o2o.rewriting.matchers import constant_ints


def _reshape(tokens: TokenValues, node: ir.Node) -> None:
    output, x = node.outputs[0], node.inputs[0]
    assert x is not None
    tokens.assign(output, tokens.get(x, node))


def permutes_token(node: ir.Node) -> bool:
    """Return whether a layout operator changes the order of a token's elements.

    Args:
        node: A layout operator such as RESHAPE or TRANSPOSE.

    Returns:
        Whether it is a TRANSPOSE that moves more than axes of size 1.
    """
    if node.op_type != "TRANSPOSE":
        return False
    axes, x = constant_ints(node.inputs[1]), node.inputs[0]
    moving = [axis for axis in axes or () if x is None or shape_of(x)[axis] != 1]
    return axes is None or moving != sorted(moving)


def _transpose(tokens: TokenValues, node: ir.Node) -> None:
    x, axes = node.inputs[0], constant_ints(node.inputs[1])
    assert x is not None
    if axes is None:
        raise tokens.error(node, "its permutation is not a constant")
    shape = shape_of(x)
    y = tokens.get(x, node)
    if permutes_token(node):
        leading = range(len(tokens.leading))
        y = tokens.op.reshape(y, [*tokens.leading_of(y), *shape])
        order = [*leading, *(len(leading) + axis for axis in axes)]
        y = tokens.op.transpose(y, order, name=node.outputs[0].name or "")
    tokens.assign(node.outputs[0], y)


def _concatenation(tokens: TokenValues, node: ir.Node) -> None:
    output = node.outputs[0]
    rank = len(shape_of(output))
    axis = attribute(node, "axis", 0) % rank - rank
    keep = max(len(token_shape(output)), -axis)
    parts = [
        _part(tokens, node, value, shape_of(value)[rank - keep :])
        for value in node.inputs
        if value is not None
    ]
    shape = [*tokens.leading_of(*parts), *shape_of(output)[rank - keep :]]
    y = tokens.op.node("Concat", parts, shape, name=output.name or "", axis=axis)
    tokens.assign(output, with_activation(tokens, node, y))


def _part(tokens: TokenValues, node: ir.Node, value: ir.Value, shape: Sequence[int]) -> ir.Value:
    """An operand of Concat, [*leading, *shape]: a constant needs the leading axes too."""
    folded = tokens.fold(value)
    if folded is None:
        return tokens.reshaped(value, node, shape)
    table = np.broadcast_to(folded, shape_of(value)).reshape(shape)
    constant = tokens.op.constant(table, value.name or "constant", table.dtype)
    if not tokens.leading:
        return constant
    leading = [tokens.op.constant([1], "one")] * (len(tokens.leading) - 1) + [tokens.count]
    shapes = [*leading, tokens.op.constant(table.shape, "shape")]
    target = tokens.op.node("Concat", shapes, [len(leading) + len(shape)], axis=0)
    return tokens.op.node("Expand", [constant, target], [*tokens.leading, *table.shape])


def _pack(tokens: TokenValues, node: ir.Node) -> None:
    output = node.outputs[0]
    shape = shape_of(output)
    axis = attribute(node, "axis", 0) % len(shape) - len(shape)
    keep = max(len(token_shape(output)), -axis)
    part_shape = [1 if index == len(shape) + axis else dim for index, dim in enumerate(shape)]
    parts = [
        _part(tokens, node, value, part_shape[len(shape) - keep :])
        for value in node.inputs
        if value is not None
    ]
    full = [*tokens.leading_of(*parts), *shape[len(shape) - keep :]]
    tokens.assign(output, tokens.op.node("Concat", parts, full, name=output.name or "", axis=axis))


def _unpack(tokens: TokenValues, node: ir.Node) -> None:
    x = node.inputs[0]
    assert x is not None
    axis = attribute(node, "axis", 0) % len(shape_of(x)) - len(shape_of(x))
    _split_along(tokens, node, x, axis, [1] * len(node.outputs))


def _broadcast(tokens: TokenValues, node: ir.Node) -> None:
    x, output = node.inputs[0], node.outputs[0]
    assert x is not None
    shape = token_shape(output)
    operand = tokens.reshaped(x, node, (1,) * (len(shape) - len(token_shape(x))) + token_shape(x))
    if token_shape(x) != shape:
        ones = [1] * len(tokens.leading)
        target = tokens.op.constant([*ones, *shape], "shape")
        full = [*tokens.leading_of(operand), *shape]
        operand = tokens.op.node("Expand", [operand, target], full, name=output.name or "")
    tokens.assign(output, operand)


def _tile(tokens: TokenValues, node: ir.Node) -> None:
    x, output, times = node.inputs[0], node.outputs[0], constant_ints(node.inputs[1])
    assert x is not None
    if times is None:
        raise tokens.error(node, "its multiples are not constants")
    shape = shape_of(x)
    keep = max([len(token_shape(x)), *(len(shape) - axis for axis, n in enumerate(times) if n != 1)])
    operand = tokens.reshaped(x, node, shape[len(shape) - keep :])
    repeats = tokens.op.constant([1] * len(tokens.leading) + times[len(shape) - keep :], "repeats")
    full = [*tokens.leading_of(operand), *shape_of(output)[len(shape) - keep :]]
    tokens.assign(output, tokens.op.node("Tile", [operand, repeats], full, name=output.name or ""))


def _pad(tokens: TokenValues, node: ir.Node) -> None:
    x, output, amounts = node.inputs[0], node.outputs[0], constant_ints(node.inputs[1])
    number = node.inputs[2] if node.op_type == "PADV2" else None
    assert x is not None
    if amounts is None:
        raise tokens.error(node, "its paddings are not constants")
    shape = shape_of(x)
    pairs = list(zip(amounts[::2], amounts[1::2], strict=True))
    keep = max([len(token_shape(x)), *(len(shape) - axis for axis, pair in enumerate(pairs) if any(pair))])
    operand = tokens.reshaped(x, node, shape[len(shape) - keep :])
    axes = tokens.op.constant(list(range(-keep, 0)), "axes")
    pairs = pairs[len(shape) - keep :]
    pads = tokens.op.constant([before for before, _ in pairs] + [after for _, after in pairs], "pads")
    value = None if number is None else tokens.operand(number, node, 0)
    full = [*tokens.leading_of(operand), *shape_of(output)[len(shape) - keep :]]
    y = tokens.op.node("Pad", [operand, pads, value, axes], full, name=output.name or "")
    tokens.assign(output, y)


def _gather(tokens: TokenValues, node: ir.Node) -> None:
    x, indices, output = node.inputs[0], node.inputs[1], node.outputs[0]
    places = None if indices is None else tokens.fold(indices)
    assert x is not None
    if places is None or attribute(node, "batchDims", 0):
        raise tokens.error(node, "only lookups in constants, and of constant places, are supported")
    shape = shape_of(x)
    axis = attribute(node, "axis", 0) % len(shape) - len(shape)
    keep = max(len(token_shape(x)), -axis)
    tail = shape[len(shape) - keep :]
    operand = tokens.reshaped(x, node, tail)
    full = [*tokens.leading_of(operand), *tail[: keep + axis], *places.shape, *tail[keep + axis + 1 :]]
    numbers = tokens.op.constant(places, "places")
    y = tokens.op.node("Gather", [operand, numbers], full, name=output.name or "", axis=axis)
    tokens.assign(output, y)


def _cut(tokens: TokenValues, node: ir.Node) -> None:
    x, output = node.inputs[0], node.outputs[0]
    assert x is not None
    try:
        bounds = slice_bounds(node)
    except NotEvaluable as reason:
        raise tokens.error(node, str(reason)) from reason
    shape = shape_of(x)
    axes_cut = [axis for axis, bound in enumerate(bounds) if bound != (0, shape[axis], 1)]
    keep = max([len(token_shape(x)), *(len(shape) - axis for axis in axes_cut)])
    y = tokens.reshaped(x, node, shape[len(shape) - keep :])
    if axes_cut:
        columns = zip(*(_onnx_bounds(bounds[axis], shape[axis]) for axis in axes_cut), strict=True)
        starts, stops, steps = (
            tokens.op.constant(list(column), name)
            for name, column in zip(("starts", "ends", "steps"), columns, strict=True)
        )
        axes = tokens.op.constant([axis - len(shape) for axis in axes_cut], "axes")
        new_shape = [*tokens.leading_of(y), *shape_of(output)[len(shape) - keep :]]
        y = tokens.op.node("Slice", [y, starts, stops, axes, steps], new_shape, name=output.name or "")
    tokens.assign(output, y)


def _onnx_bounds(bound: tuple[int, int, int], dim: int) -> tuple[int, int, int]:
    """ONNX counts a negative end from the last element: the end before the first one is -dim - 1."""
    start, stop, step = bound
    return start, (stop if stop >= 0 else -dim - 1), step


def _split(tokens: TokenValues, node: ir.Node) -> None:
    if node.op_type == "SPLIT_V":
        x, sizes, axes = node.inputs[0], constant_ints(node.inputs[1]), constant_ints(node.inputs[2])
    else:
        x, sizes, axes = node.inputs[1], [], constant_ints(node.inputs[0])
    assert x is not None
    if axes is None or sizes is None:
        raise tokens.error(node, "its axis or its sizes are not constants")
    axis = axes[0] % len(shape_of(x)) - len(shape_of(x))
    _split_along(tokens, node, x, axis, [shape_of(output)[axis] for output in node.outputs])


def _split_along(tokens: TokenValues, node: ir.Node, x: ir.Value, axis: int, lengths: Sequence[int]) -> None:
    shape = shape_of(x)
    keep = max(len(token_shape(x)), -axis)
    operand = tokens.reshaped(x, node, shape[len(shape) - keep :])
    parts = []
    for output, length in zip(node.outputs, lengths, strict=True):
        part_shape: list[Dim] = dims(operand)
        part_shape[axis] = length
        assert operand.dtype is not None
        parts.append(tokens.op.value(output.name or "part", operand.dtype, part_shape))
    tokens.op.add("Split", [operand, tokens.op.constant(lengths, "lengths")], parts, axis=axis)
    for output, part in zip(node.outputs, parts, strict=True):
        tokens.assign(output, part)


LAYOUT_RULES: dict[str, Rule] = {
    "RESHAPE": _reshape,
    "EXPAND_DIMS": _reshape,
    "SQUEEZE": _reshape,
    "TRANSPOSE": _transpose,
    "BROADCAST_TO": _broadcast,
    "TILE": _tile,
    "CONCATENATION": _concatenation,
    "PACK": _pack,
    "UNPACK": _unpack,
    "PAD": _pad,
    "PADV2": _pad,
    "GATHER": _gather,
    "SLICE": _cut,
    "STRIDED_SLICE": _cut,
    "SPLIT": _split,
    "SPLIT_V": _split,
}
