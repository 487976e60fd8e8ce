"""LayerNorm: matching of the forms that exporters write. Circle has no operator for it.

(x - mean(x)) / sqrt(var(x) + epsilon) * weight + bias, over the last axis (Ba, Kiros and Hinton 2016).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from o2o.formats.tensors import is_constant
from o2o.model import attribute, shape_of
from o2o.rewriting.matchers import MatchFailure, check_no_activation, fail, producer_of, single_user
from o2o.rewriting.normalization import divided_by_root, mean_and_epsilon, operand_of_mean, operand_of_square


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
    variance, epsilon = mean_and_epsilon(node)
    x, mean = _deviation_of_square(operand_of_mean(variance, "the variance"))
    if operand_of_mean(mean, "a mean") is not x:
        fail("the tensor and its mean differ", mean)
    last = divided_by_root(node, lambda value: _deviation(value) == (x, mean))
    D = shape_of(x)[-1]
    weight = bias = None
    if (product := _user_with_vector(last, "MUL", D, is_weight)) is not None:
        last, weight = product
    if (total := _user_with_vector(last, "ADD", D, is_weight)) is not None:
        last, bias = total
    return LayerNorm(last, x, weight, bias, epsilon)


def _deviation_of_square(squared: ir.Value) -> tuple[ir.Value, ir.Value]:
    """x and its mean, given the square of their difference."""
    if (node := producer_of(squared, "SQUARED_DIFFERENCE")) is not None:
        check_no_activation(node)
        return node.inputs[0], node.inputs[1]  # type: ignore[return-value]
    difference = operand_of_square(squared, lambda a, b: _deviation(a) == _deviation(b))
    deviation = _deviation(difference)
    if deviation is None:
        fail("the square is not one of a deviation from the mean", squared)
    return deviation


def _deviation(value: ir.Value | None) -> tuple[ir.Value, ir.Value] | None:
    """(x, y), if `value` is x - y."""
    node = producer_of(value, "SUB")
    if node is None or attribute(node, "fusedActivationFunction", 0):
        return None
    return node.inputs[0], node.inputs[1]  # type: ignore[return-value]


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
