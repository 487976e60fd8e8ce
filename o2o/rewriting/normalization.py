"""The parts that RMSNorm and LayerNorm share: x / sqrt(mean(square) + epsilon), in the forms of exporters."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from o2o.model import attribute, shape_of
from o2o.rewriting.matchers import (
    check_no_activation,
    constant_ints,
    fail,
    operand_and_scalar,
    require_producer,
    scalar,
    single_user,
)

NORM_ANCHORS = ("RSQRT", "SQRT")
"""The operators at which matching starts: the root, or its inverse."""


def mean_and_epsilon(root: ir.Node) -> tuple[ir.Value, float]:
    """Return the operands of the sum under a root.

    Args:
        root: An RSQRT or SQRT.

    Returns:
        The mean, and epsilon.

    Raises:
        MatchFailure: No positive constant is added.
    """
    add = require_producer(_first(root), "the root", "ADD")
    check_no_activation(add)
    operands = operand_and_scalar(add)
    if operands is None:
        fail("no constant epsilon is added to the mean", add.outputs[0])
    mean, epsilon = operands
    if epsilon <= 0:
        fail(f"epsilon is {epsilon}", mean)
    return mean, epsilon


def operand_of_mean(value: ir.Value, description: str) -> ir.Value:
    """Return x, given its mean over the last axis, which is kept.

    Args:
        value: The mean.
        description: What `value` is, for the message.

    Returns:
        x [..., D].

    Raises:
        MatchFailure: `value` is something else.
    """
    node = require_producer(value, description, "MEAN")
    x, axes = _first(node), constant_ints(node.inputs[1])
    if axes not in ([-1], [len(shape_of(x)) - 1]):
        fail(f"the mean goes over axes {axes}, not the last one", value)
    if not attribute(node, "keepDims", 0):
        fail("the mean does not keep its axis", value)
    return x


def operand_of_square(
    squared: ir.Value, is_same: Callable[[ir.Value, ir.Value | None], bool] = lambda x, y: x is y
) -> ir.Value:
    """Return x, given x * x, SQUARE(x) or POW(x, 2).

    Args:
        squared: The square.
        is_same: Whether two values are the same x.

    Returns:
        x.

    Raises:
        MatchFailure: `squared` is something else.
    """
    node = require_producer(squared, "the mean's operand", "MUL", "SQUARE", "POW")
    check_no_activation(node)
    x = _first(node)
    if node.op_type == "MUL" and not is_same(x, node.inputs[1]):
        fail("the mean's operand is a product of two tensors, not a square", squared)
    if node.op_type == "POW" and scalar(node.inputs[1]) != 2:
        fail("the mean's operand is a power other than the square", squared)
    return x


def divided_by_root(root: ir.Node, is_operand: Callable[[ir.Value | None], bool]) -> ir.Node:
    """Return the operator that divides the squared tensor by the root, or multiplies it by the inverse root.

    Args:
        root: An RSQRT or SQRT.
        is_operand: Whether a value is the tensor that was squared.

    Returns:
        The only user of the root or of its inverse.

    Raises:
        MatchFailure: The root is used otherwise.
    """
    value = root.outputs[0]
    user = single_user(value, "the root")
    if root.op_type == "SQRT":
        if user.op_type != "DIV" or user.inputs[1] is not value:
            fail("the root does not divide the tensor that was squared", value)
        check_no_activation(user)
        if scalar(user.inputs[0]) != 1:
            if not is_operand(user.inputs[0]):
                fail("the root does not divide the tensor that was squared", value)
            return user
        value = user.outputs[0]
        user = single_user(value, "the inverse root")
    others = [operand for operand in user.inputs if operand is not value]
    if user.op_type != "MUL" or len(others) != 1 or not is_operand(others[0]):
        fail("the inverse root does not multiply the tensor that was squared", value)
    check_no_activation(user)
    return user


def _first(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None
    return value
