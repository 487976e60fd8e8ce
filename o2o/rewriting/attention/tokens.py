"""Proving that a mask goes by tokens: that each of its rows is a function of one token's position alone.

Such a row says the same wherever the first of the T tokens is, so the mask need not be computed at each
position of that one, but at every T-th: 8 times instead of 1793 for 256 tokens and a cache of 2048 rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import onnx_ir as ir

from o2o.model import attribute, shape_of
from o2o.operators.facts import RESHAPE_OPS, is_elementwise
from o2o.operators.reference import is_pure
from o2o.rewriting.matchers import constant_ints


def token_axis(
    value: ir.Value, position: ir.Value, tokens: int, counts: Callable[[ir.Value], bool]
) -> int | None:
    """The axis of `value` along which it goes by `tokens`, from the end (-1 is the last); None if unproven.

    position: the one unknown that `value` is computed from. counts: whether a vector of that many numbers
    counts up by 1 from token to token, and with the position.
    """
    axes: dict[ir.Value, int | None] = {position: None}  # of what depends on the position
    if (vector := _vector_axis(position, tokens)) is not None and counts(position):
        axes[position] = vector
    for node in _way(value):
        if not any(operand in axes for operand in node.inputs):
            continue
        axis = _result_axis(node, axes, tokens) if is_pure(node) else None
        for result in node.outputs:
            vector = _vector_axis(result, tokens)
            axes[result] = vector if axis is None and vector is not None and counts(result) else axis
    return axes.get(value)


def _vector_axis(value: ir.Value, tokens: int) -> int | None:
    """The axis with all the elements, when there are `tokens`."""
    shape = shape_of(value)
    return shape.index(tokens) - len(shape) if tokens in shape and math.prod(shape) == tokens else None


def _way(value: ir.Value) -> list[ir.Node]:
    """The nodes that `value` is computed by, in the order of its graph."""
    found: set[ir.Node] = set()
    waiting = [value.producer()]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [operand.producer() for operand in node.inputs if operand is not None]
    last = value.producer()
    return (
        [node for node in last.graph if node in found] if last is not None and last.graph is not None else []
    )


def _result_axis(node: ir.Node, axes: Mapping[ir.Value, int | None], tokens: int) -> int | None:
    moving = {operand for operand in node.inputs if operand in axes}
    known = {axes[operand] for operand in moving if operand is not None}
    if len(known) != 1 or (axis := known.pop()) is None:
        return None
    if is_elementwise(node):
        still = [shape_of(v) for v in node.inputs if v is not None and v not in moving]
        return axis if all(len(shape) < -axis or shape[axis] == 1 for shape in still) else None
    if node.op_type == "GATHER" and moving == {node.inputs[1]}:
        table = shape_of(node.inputs[0])  # type: ignore[arg-type]
        return axis - (len(table) - 1 - attribute(node, "axis", 0) % len(table))  # its later axes follow
    if moving != {node.inputs[0]}:
        return None
    before, after = shape_of(node.inputs[0]), shape_of(node.outputs[0])  # type: ignore[arg-type]
    if node.op_type == "BROADCAST_TO":
        return axis
    if node.op_type == "TRANSPOSE" and (axes_ := constant_ints(node.inputs[1])) is not None:
        return axes_.index(axis % len(before)) - len(before)
    if node.op_type in RESHAPE_OPS:  # as many elements behind it as before
        behind = math.prod(before[len(before) + axis + 1 :])
        places = (n for n in range(-len(after), 0) if after[n] == tokens)
        return next((n for n in places if math.prod(after[len(after) + n + 1 :]) == behind), None)
    return None
