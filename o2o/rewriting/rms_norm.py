"""RMSNorm: matching of the forms that exporters write, and fusion into RMS_NORM.

x / sqrt(mean(x^2) + epsilon) * weight, the mean over the last axis (Zhang and Sennrich 2019).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import is_constant
from o2o.formats.unbound_tensor import UnboundTensor
from o2o.model import DOMAIN, Model, attribute, shape_of
from o2o.operators.reference import NotEvaluable, evaluate, unknown_sources
from o2o.rewriting.builder import Builder, add_constant, add_tensor
from o2o.rewriting.matchers import MatchFailure, check_no_activation, fail, producer_of, scalar, single_user
from o2o.rewriting.normalization import (
    NORM_ANCHORS,
    divided_by_root,
    mean_and_epsilon,
    operand_of_mean,
    operand_of_square,
)
from o2o.rewriting.rewire import replace_output
from o2o.rewriting.rewrite_rule import RewriteRule


@dataclass(frozen=True)
class RmsNorm:
    """A matched RMSNorm of x [.., D] with weight [D]. `last` is the multiplication by the weight."""

    last: ir.Node
    x: ir.Value
    weight: ir.Value
    epsilon: float


@dataclass(frozen=True)
class Normalized:
    """x / sqrt(mean(x^2) + epsilon), and the products of this with weights.

    Attributes:
        x: The operand.
        value: The normalized tensor.
        products: Its products with a constant [D], which are all of its uses; empty if there are others.
        epsilon: Added to the mean.
    """

    x: ir.Value
    value: ir.Value
    products: tuple[RmsNorm, ...]
    epsilon: float


class RmsNormRule(RewriteRule):
    """Fuse RMSNorm into RMS_NORM, with a constant weight [D] or without a weight.

    The weight may be computed from constants, such as Gemma's 1 + weight. Several products of one normalized
    tensor become several RMS_NORM, one for each weight. If the tensor has other uses, it becomes RMS_NORM
    with a weight of ones.
    """

    anchors = NORM_ANCHORS
    takes_layer_norm: ClassVar[bool] = False  # LayerNorm is RMSNorm of what is left of x without its mean

    def __init__(self) -> None:
        self._weights: dict[tuple[ir.Graph, object], ir.Value] = {}

    def match(self, node: ir.Node) -> Normalized:
        """See `RewriteRule`."""
        normalized = match_normalized(node)
        if not self.takes_layer_norm and _is_centered(normalized.x):
            fail("a mean is subtracted: it is LayerNorm", normalized.x)
        return normalized

    def rewrite(self, model: Model, graph: ir.Graph, match: Normalized) -> None:
        """See `RewriteRule`."""
        op = Builder(graph, before=match.value.producer())
        size = shape_of(match.x)[-1]
        if not match.products:
            replace_output(model, match.value, self._norm(op, match, self._ones(graph, size, match.x.dtype)))
        shared: dict[ir.Value, ir.Value] = {}
        for product in match.products:
            old, weight = product.last.outputs[0], self._constant(graph, product.weight)
            if weight in shared and not old.is_graph_output():
                old.replace_all_uses_with(shared[weight])
            else:
                shared[weight] = self._norm(op, match, weight)
                replace_output(model, old, shared[weight])

    def _norm(self, op: Builder, match: Normalized, weight: ir.Value) -> ir.Value:
        return op.node("RMS_NORM", [match.x, weight], shape_of(match.x), epsilon=match.epsilon)

    def _ones(self, graph: ir.Graph, size: int, dtype: ir.DataType | None) -> ir.Value:
        key = graph, (size, dtype)
        if key not in self._weights:
            numbers = np.ones(size, np.float32 if dtype is None else dtype.numpy())
            self._weights[key] = add_constant(graph, numbers, "ones")
        return self._weights[key]

    def _constant(self, graph: ir.Graph, weight: ir.Value) -> ir.Value:
        """`weight` as a constant [D]."""
        if is_constant(weight) and len(shape_of(weight)) == 1:
            return weight
        key = graph, weight
        if key not in self._weights:
            tensor = _folded(weight)
            assert tensor is not None
            self._weights[key] = add_tensor(graph, tensor, weight.name or "weight")
        return self._weights[key]


def match_rms_norm(node: ir.Node) -> RmsNorm:
    """Match the RMSNorm around its root, whose only use is one product with a weight.

    Args:
        node: An RSQRT or SQRT.

    Returns:
        The operands and the last node.

    Raises:
        MatchFailure: The first condition that fails.
    """
    x, epsilon = _root(node)
    normalized = _normalized(node, x)
    last = single_user(normalized, "the normalized tensor")
    return _product(last, x, normalized, epsilon)


def match_normalized(node: ir.Node) -> Normalized:
    """Match a normalized tensor, and its products with constant weights.

    Args:
        node: An RSQRT or SQRT.

    Returns:
        The tensor.

    Raises:
        MatchFailure: The first condition that fails.
    """
    x, epsilon = _root(node)
    value = _normalized(node, x)
    if shape_of(value) != shape_of(x):
        fail(f"the result does not have the shape {list(shape_of(x))}", value)
    return with_products(x, value, epsilon)


def with_products(x: ir.Value, value: ir.Value, epsilon: float) -> Normalized:
    """Find the products of a normalized tensor with constant weights.

    Args:
        x: The operand.
        value: The normalized tensor.
        epsilon: Added to the mean.

    Returns:
        The tensor, without products if it has other uses.
    """
    users = dict.fromkeys(use.node for use in value.uses())
    try:
        products = [_product(user, x, value, epsilon) for user in users]
    except MatchFailure:
        products = []
    if value.is_graph_output() or any(_folded(product.weight) is None for product in products):
        products = []
    return Normalized(x, value, tuple(products), epsilon)


def _root(node: ir.Node) -> tuple[ir.Value, float]:
    """x and epsilon, given the node that computes sqrt(mean(x^2) + epsilon) or its inverse."""
    mean, epsilon = mean_and_epsilon(node)
    return operand_of_square(operand_of_mean(mean, "the mean of squares")), epsilon


def _normalized(root: ir.Node, x: ir.Value) -> ir.Value:
    return divided_by_root(root, lambda value: value is x).outputs[0]


def _product(last: ir.Node, x: ir.Value, normalized: ir.Value, epsilon: float) -> RmsNorm:
    """The RMSNorm whose last node multiplies `normalized` by a weight."""
    if last.domain != DOMAIN or last.op_type != "MUL":
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


def _is_centered(x: ir.Value) -> bool:
    """Whether x is a tensor minus its mean over the last axis."""
    node = producer_of(x, "SUB")
    mean = producer_of(node.inputs[1], "MEAN") if node is not None else None
    return node is not None and mean is not None and mean.inputs[0] is node.inputs[0]


def _folded(weight: ir.Value) -> ir.TensorProtocol | None:
    """The constant that `weight` is, or is computed from constants; None if it is not."""
    if is_constant(weight):
        return weight.const_value
    node = producer_of(weight, "ADD")
    if node is not None and not attribute(node, "fusedActivationFunction", 0):
        for stored, added in (node.inputs, node.inputs[::-1]):
            number, tensor = scalar(added), stored.const_value if stored is not None else None
            if number is not None and isinstance(tensor, UnboundTensor) and tensor.shape == weight.shape:
                return tensor.plus(number, weight.name or "weight")
    if unknown_sources(weight):
        return None
    try:
        return ir.Tensor(np.ascontiguousarray(evaluate(weight, {})))
    except NotEvaluable:
        return None
