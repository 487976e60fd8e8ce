"""Matching by data flow: follow operands from an anchor node, and report the first condition that fails.

A rule's `match` is plain code over these helpers. The first failed condition raises `MatchFailure` with the
reason and the tensor, which `--explain` prints.
"""

from __future__ import annotations

from typing import NoReturn

import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import constant_array
from o2o.model import DOMAIN, attribute, shape_of


class MatchFailure(Exception):
    """The condition that a candidate does not meet, and the tensor at which it fails."""

    def __init__(self, reason: str, value: ir.Value | None = None) -> None:
        self.reason = reason
        self.value = value
        at = "" if value is None else f", at {describe(value)}"
        super().__init__(f"{reason}{at}")


def describe(value: ir.Value) -> str:
    """Return the name, shape and producer of `value`, for a message.

    Args:
        value: Any value.

    Returns:
        `name [shape] from OPERATOR`.
    """
    producer = value.producer()
    source = f" from {producer.op_type}" if producer is not None else ""
    return f"{value.name} {list(shape_of(value))}{source}"


def producer_of(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """Return the node that computes `value` if it is one of `op_types`, else None.

    Args:
        value: Any value, or None.
        *op_types: Builtin operators of Circle.

    Returns:
        The node or None.
    """
    producer = value.producer() if value is not None else None
    return (
        producer
        if producer is not None and producer.domain == DOMAIN and producer.op_type in op_types
        else None
    )


def require_producer(value: ir.Value, description: str, *op_types: str) -> ir.Node:
    """Return the node that computes `value`.

    Args:
        value: The tensor.
        description: What `value` is, for the message.
        op_types: The operators that may compute it.

    Returns:
        The node.

    Raises:
        MatchFailure: Another operator computes it, or it is an input or constant.
    """
    node = producer_of(value, *op_types)
    if node is None:
        producer = value.producer()
        actual = producer.op_type if producer is not None else "a graph input or constant"
        fail(f"{description} should come from {' or '.join(op_types)}, not from {actual}", value)
    return node


def fail(reason: str, value: ir.Value | None = None) -> NoReturn:
    """Raise `MatchFailure`.

    Args:
        reason: The condition that fails.
        value: The tensor at which it fails.

    Raises:
        MatchFailure: Always.
    """
    raise MatchFailure(reason, value)


def check_no_activation(node: ir.Node) -> None:
    """Raise `MatchFailure` if `node` has a fused activation.

    Args:
        node: Any node.
    """
    if attribute(node, "fusedActivationFunction", 0):
        fail(f"{node.op_type} has a fused activation", node.outputs[0])


def scalar(value: ir.Value | None) -> float | None:
    """Return the number of a constant with one element, else None.

    Args:
        value: Any value, or None.

    Returns:
        The number or None.
    """
    # The size comes first: a large constant is not read, and may be a reference to a checkpoint.
    if value is None or value.const_value is None or value.const_value.size != 1:
        return None
    array = constant_array(value)
    return None if array is None else float(array.reshape(-1)[0])


def operand_and_scalar(node: ir.Node) -> tuple[ir.Value, float] | None:
    """Return (x, c) of a commutative node x * c or x + c with a one-element constant c, else None.

    Args:
        node: A MUL or ADD.

    Returns:
        The operand and the constant, or None.
    """
    first, second = node.inputs
    for x, c in ((first, second), (second, first)):
        number = scalar(c)
        if x is not None and number is not None:
            return x, number
    return None


def operand_and_factor(node: ir.Node) -> tuple[ir.Value, float] | None:
    """Return (x, c) if `node`, MUL or DIV, computes c * x with a constant c in the shape of x, else None.

    Args:
        node: A MUL or DIV.

    Returns:
        The operand and the factor, or None.
    """
    if node.op_type == "MUL":
        match = operand_and_scalar(node)
    else:
        x, number = node.inputs[0], scalar(node.inputs[1])
        match = (x, 1 / number) if x is not None and number else None
    return match if match is not None and shape_of(match[0]) == shape_of(node.outputs[0]) else None


def single_user(value: ir.Value, description: str) -> ir.Node:
    """Return the one node that uses `value`.

    Args:
        value: The tensor.
        description: What `value` is, for the message.

    Returns:
        The node.

    Raises:
        MatchFailure: `value` has several users, is an output, or goes into a custom operator.
    """
    users = {use.node for use in value.uses()}
    if value.is_graph_output() or len(users) != 1:
        fail(f"{description} is used elsewhere too", value)
    user = users.pop()
    if user.domain != DOMAIN:
        fail(f"{description} goes into the custom operator {user.op_type}", value)
    return user


def constant_ints(value: ir.Value | None) -> list[int] | None:
    """Return the numbers of an integer constant, flattened, or None if `value` is no constant.

    Args:
        value: Any value, or None.

    Returns:
        The integers or None.
    """
    array = constant_array(value)
    return None if array is None else [int(x) for x in np.reshape(array, -1)]
