"""LayerNorm: matching of the forms that exporters write. Circle has no operator for it.

(x - mean(x)) / sqrt(var(x) + epsilon) * weight + bias, over the last axis (Ba, Kiros and Hinton 2016).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from o2o.formats.tensors import is_constant
from o2o.model import attribute, shape_of
from o2o.rewriting.matchers import (
    MatchFailure,
    check_no_activation,
    constant_ints,
    fail,
    operand_and_scalar,
    producer_of,
    require_producer,
    scalar,
    single_user,
)

LAYER_NORM_ANCHORS = ("RSQRT", "SQRT")


@dataclass(frozen=True)
class LayerNorm:
    """A matched LayerNorm of x [.., D].

    Attributes:
        last: The node of its result.
        x: Its operand.
        weight: [D], or None.
        bias: [D], or None.
        epsilon: Added to the variance.
    """

    last: ir.Node
    x: ir.Value
    weight: ir.Value | None
    bias: ir.Value | None
    epsilon: float


def match_layer_norm(node: ir.Node, is_weight: Callable[[ir.Value], bool] = is_constant) -> LayerNorm:
    """Match the LayerNorm around its root.

    Args:
        node: An RSQRT or SQRT.
        is_weight: Whether a vector [D] may be the weight or the bias.

    Returns:
        The operands and the last node. Weight and bias are included where nothing else uses the results
        before them.

    Raises:
        MatchFailure: The first condition that fails.
    """
    add = require_producer(_input(node), "the root", "ADD")
    check_no_activation(add)
    operands = operand_and_scalar(add)
    if operands is None or operands[1] <= 0:
        fail("no positive epsilon is added to the variance", add.outputs[0])
    variance, epsilon = operands
    x, mean = _deviation_of_square(_mean_operand(variance))
    if _mean_operand(mean) is not x:
        fail("the tensor and its mean differ", mean)
    last = _normalized(node, x, mean)
    D = shape_of(x)[-1]
    weight = bias = None
    if (product := _user_with_vector(last, "MUL", D, is_weight)) is not None:
        last, weight = product
    if (total := _user_with_vector(last, "ADD", D, is_weight)) is not None:
        last, bias = total
    return LayerNorm(last, x, weight, bias, epsilon)


def _input(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None
    return value


def _mean_operand(value: ir.Value) -> ir.Value:
    """x, if `value` is the mean of x over its last axis."""
    node = require_producer(value, "a mean", "MEAN")
    x = _input(node)
    if constant_ints(node.inputs[1]) not in ([-1], [len(shape_of(x)) - 1]):
        fail("the mean goes over other axes than the last one", value)
    if not attribute(node, "keepDims", 0):
        fail("the mean does not keep its axis", value)
    return x


def _deviation_of_square(squared: ir.Value) -> tuple[ir.Value, ir.Value]:
    """x and its mean, given the square of their difference."""
    node = require_producer(squared, "the variance's operand", "SQUARED_DIFFERENCE", "MUL", "SQUARE", "POW")
    check_no_activation(node)
    if node.op_type == "SQUARED_DIFFERENCE":
        return _input(node), node.inputs[1]  # type: ignore[return-value]
    if node.op_type == "MUL" and _deviation(node.inputs[0]) != _deviation(node.inputs[1]):
        fail("the variance's operand is no square", squared)
    if node.op_type == "POW" and scalar(node.inputs[1]) != 2:
        fail("the variance's operand is a power other than the square", squared)
    deviation = _deviation(node.inputs[0])
    if deviation is None:
        fail("the square is not one of a deviation from the mean", squared)
    return deviation


def _deviation(value: ir.Value | None) -> tuple[ir.Value, ir.Value] | None:
    """(x, y), if `value` is x - y."""
    node = producer_of(value, "SUB")
    if node is None or attribute(node, "fusedActivationFunction", 0):
        return None
    return node.inputs[0], node.inputs[1]  # type: ignore[return-value]


def _normalized(root: ir.Node, x: ir.Value, mean: ir.Value) -> ir.Node:
    """The node that divides x - mean by the root."""
    value = root.outputs[0]
    user = single_user(value, "the root")
    check_no_activation(user)
    if root.op_type == "SQRT":
        if user.op_type == "DIV" and user.inputs[1] is value and _deviation(user.inputs[0]) == (x, mean):
            return user
        if user.op_type != "DIV" or scalar(user.inputs[0]) != 1:
            fail("the root does not divide the deviation", value)
        value = user.outputs[0]
        user = single_user(value, "the inverse root")
        check_no_activation(user)
    others = [operand for operand in user.inputs if operand is not value]
    if user.op_type != "MUL" or len(others) != 1 or _deviation(others[0]) != (x, mean):
        fail("the inverse root does not multiply the deviation", value)
    return user


def _user_with_vector(
    node: ir.Node, op_type: str, D: int, is_weight: Callable[[ir.Value], bool]
) -> tuple[ir.Node, ir.Value] | None:
    """The one user of a node, and its vector [D], if it is an `op_type` of the result and the vector."""
    value = node.outputs[0]
    try:
        user = single_user(value, "the normalized tensor")
        check_no_activation(user)
    except MatchFailure:
        return None
    others = [operand for operand in user.inputs if operand is not value]
    if user.op_type != op_type or len(others) != 1 or others[0] is None:
        return None
    return (user, others[0]) if shape_of(others[0]) == (D,) and is_weight(others[0]) else None
