"""RMSNorm: matching of the forms that exporters write, and fusion into RMS_NORM.

x / sqrt(mean(x^2) + epsilon) * weight, the mean over the last axis (Zhang and Sennrich 2019).
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from o2o.formats.tensors import is_constant
from o2o.model import Model, attribute, shape_of
from o2o.rewriting.builder import Builder
from o2o.rewriting.matchers import (
    check_no_activation,
    constant_ints,
    fail,
    operand_and_scalar,
    require_producer,
    scalar,
    single_user,
)
from o2o.rewriting.rewire import replace_output
from o2o.rewriting.rewrite_rule import RewriteRule

RMS_NORM_ANCHORS = ("RSQRT", "SQRT")


@dataclass(frozen=True)
class RmsNorm:
    """A matched RMSNorm of x [.., D] with weight [D]. `last` is the multiplication by the weight."""

    last: ir.Node
    x: ir.Value
    weight: ir.Value
    epsilon: float


class RmsNormRule(RewriteRule):
    """Fuse RMSNorm with a constant weight [D] into RMS_NORM."""

    anchors = RMS_NORM_ANCHORS

    def match(self, node: ir.Node) -> RmsNorm:
        """See `RewriteRule`."""
        norm = match_rms_norm(node)
        if not is_constant(norm.weight):
            fail("the weight is not a constant", norm.weight)
        return norm

    def rewrite(self, model: Model, graph: ir.Graph, match: RmsNorm) -> None:
        """See `RewriteRule`."""
        old = match.last.outputs[0]
        op = Builder(graph, before=match.last)
        new = op.node("RMS_NORM", [match.x, match.weight], shape_of(old), epsilon=match.epsilon)
        replace_output(model, old, new)


def match_rms_norm(node: ir.Node) -> RmsNorm:
    """Match the RMSNorm around its root.

    Args:
        node: An RSQRT or SQRT.

    Returns:
        The operands and the last node.

    Raises:
        MatchFailure: The first condition that fails.
    """
    add = require_producer(_input(node), "the root", "ADD")
    check_no_activation(add)
    sum_operands = operand_and_scalar(add)
    if sum_operands is None:
        fail("no constant epsilon is added to the mean", add.outputs[0])
    mean, epsilon = sum_operands
    if epsilon <= 0:
        fail(f"epsilon is {epsilon}", mean)
    mean_node = require_producer(mean, "the mean of squares", "MEAN")
    squared = _input(mean_node)
    axes = constant_ints(mean_node.inputs[1])
    if axes not in ([-1], [len(shape_of(squared)) - 1]):
        fail(f"the mean goes over axes {axes}, not the last one", mean)
    if not attribute(mean_node, "keepDims", 0):
        fail("the mean does not keep its axis", mean)
    x = _squared(squared)
    normalized = _normalized(node, x)
    last = single_user(normalized, "the normalized tensor")
    if last.op_type != "MUL":
        fail("the normalized tensor is not multiplied by a weight", normalized)
    check_no_activation(last)
    weight = next((v for v in last.inputs if v is not normalized), None)
    if weight is None:
        fail("the normalized tensor is multiplied by itself", normalized)
    if shape_of(weight) != shape_of(x)[-1:]:
        fail(f"the weight should be [{shape_of(x)[-1]}]", weight)
    if shape_of(last.outputs[0]) != shape_of(x):
        fail(f"the result does not have the shape {list(shape_of(x))}", last.outputs[0])
    return RmsNorm(last, x, weight, epsilon)


def _squared(squared: ir.Value) -> ir.Value:
    """x, given x * x, SQUARE(x) or POW(x, 2)."""
    node = require_producer(squared, "the mean's operand", "MUL", "SQUARE", "POW")
    check_no_activation(node)
    x = _input(node)
    if node.op_type == "MUL" and node.inputs[1] is not x:
        fail("the mean's operand is a product of two tensors, not a square", squared)
    if node.op_type == "POW" and scalar(node.inputs[1]) != 2:
        fail("the mean's operand is a power other than the square", squared)
    return x


def _normalized(root: ir.Node, x: ir.Value) -> ir.Value:
    """x times the inverse root, or x divided by the root."""
    value = root.outputs[0]
    user = single_user(value, "the root")
    if root.op_type == "SQRT" and (inverse := _inverse(user, value)) is not None:
        value = inverse
        user = single_user(value, "the inverse root")
    elif root.op_type == "SQRT":
        if user.op_type != "DIV" or user.inputs[0] is not x or user.inputs[1] is not value:
            fail("the root does not divide the tensor that was squared", value)
        check_no_activation(user)
        return user.outputs[0]
    if user.op_type != "MUL" or {user.inputs[0], user.inputs[1]} != {x, value}:
        fail("the inverse root does not multiply the tensor that was squared", value)
    check_no_activation(user)
    return user.outputs[0]


def _input(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None
    return value


def _inverse(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """The result of `node` if it computes 1 / value."""
    if node.op_type == "DIV" and scalar(node.inputs[0]) == 1 and node.inputs[1] is value:
        check_no_activation(node)
        return node.outputs[0]
    return None
