"""Proof that each row of a mask is a function of one token's position alone.

Such a row is the same wherever its token stands among the T tokens. The mask is then computed at every T-th
position of the first token only. For 256 tokens and a cache of 2048 rows, 8 positions are computed instead of
1793.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import onnx_ir as ir

from o2o.model import attribute, shape_of
from o2o.operators.reference import is_pure, producers
from o2o.operators.traits import RESHAPE_OPS, is_elementwise
from o2o.rewriting.matchers import constant_ints


def token_axis(
    value: ir.Value, position: ir.Value, tokens: int, counts: Callable[[ir.Value], bool]
) -> int | None:
    """Return the axis of `value` along which each slice depends on one token's position.

    Args:
        value: The mask.
        position: The one unknown from which `value` is computed.
        tokens: T.
        counts: Whether a vector of T numbers grows by 1 per token, and with the position.

    Returns:
        The axis from the end (-1 is the last), or None if there is no proof.
    """
    axes: dict[ir.Value, int | None] = {position: None}  # token axes, by value
    if (vector := _vector_axis(position, tokens)) is not None and counts(position):
        axes[position] = vector
    for node in producers(value):
        if not any(operand in axes for operand in node.inputs):
            continue
        axis = _result_axis(node, axes, tokens) if is_pure(node) else None
        for result in node.outputs:
            vector = _vector_axis(result, tokens)
            axes[result] = vector if axis is None and vector is not None and counts(result) else axis
    return axes.get(value)


def _vector_axis(value: ir.Value, tokens: int) -> int | None:
    """The axis that holds all elements of `value`, if there are `tokens` elements."""
    shape = shape_of(value)
    return shape.index(tokens) - len(shape) if tokens in shape and math.prod(shape) == tokens else None


def _result_axis(node: ir.Node, axes: Mapping[ir.Value, int | None], tokens: int) -> int | None:
    """The token axis of the result of `node`, given the token axes of its operands."""
    dependent = {operand for operand in node.inputs if operand in axes}
    known = {axes[operand] for operand in dependent if operand is not None}
    if len(known) != 1 or (axis := known.pop()) is None:
        return None
    if is_elementwise(node):
        constant = [shape_of(v) for v in node.inputs if v is not None and v not in dependent]
        return axis if all(len(shape) < -axis or shape[axis] == 1 for shape in constant) else None
    if node.op_type == "GATHER" and dependent == {node.inputs[1]}:
        table = shape_of(node.inputs[0])  # type: ignore[arg-type]
        return axis - (len(table) - 1 - attribute(node, "axis", 0) % len(table))  # its later axes follow
    if dependent != {node.inputs[0]}:
        return None
    before, after = shape_of(node.inputs[0]), shape_of(node.outputs[0])  # type: ignore[arg-type]
    if node.op_type == "BROADCAST_TO":
        return axis
    if node.op_type == "TRANSPOSE" and (permutation := constant_ints(node.inputs[1])) is not None:
        return permutation.index(axis % len(before)) - len(before)
    if node.op_type in RESHAPE_OPS:  # the axis after which as many elements follow as before
        following = math.prod(before[len(before) + axis + 1 :])
        candidates = (n for n in range(-len(after), 0) if after[n] == tokens)
        return next((n for n in candidates if math.prod(after[len(after) + n + 1 :]) == following), None)
    return None
