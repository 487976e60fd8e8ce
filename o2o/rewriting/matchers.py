"""Matching by dataflow: walk from an anchor to its sources, and say exactly where it went wrong.

A fusion's match is plain code over these helpers. The first condition that fails raises `MatchFailure` with
the reason and the tensor: that is the nearest miss, and what `--explain` prints.
"""

from __future__ import annotations

from typing import NoReturn

import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import numbers
from o2o.model import DOMAIN, attribute, shape_of


class MatchFailure(Exception):
    """Why a candidate is not what it looked like, and at which tensor."""

    def __init__(self, reason: str, value: ir.Value | None = None) -> None:
        self.reason = reason
        self.value = value
        at = "" if value is None else f", at {describe(value)}"
        super().__init__(f"{reason}{at}")


def describe(value: ir.Value) -> str:
    """A tensor for a message: its name, shape, and who makes it."""
    producer = value.producer()
    maker = f" from {producer.op_type}" if producer is not None else ""
    return f"{value.name} {list(shape_of(value))}{maker}"


def producer_of(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The node that makes `value` if it is one of `op_types`, else None."""
    producer = value.producer() if value is not None else None
    return (
        producer
        if producer is not None and producer.domain == DOMAIN and producer.op_type in op_types
        else None
    )


def require_producer(value: ir.Value, what: str, *op_types: str) -> ir.Node:
    """The node that makes `value`; MatchFailure unless it is one of `op_types`."""
    node = producer_of(value, *op_types)
    if node is None:
        producer = value.producer()
        found = producer.op_type if producer is not None else "a graph input or constant"
        fail(f"{what} should come from {' or '.join(op_types)}, not from {found}", value)
    return node


def fail(reason: str, value: ir.Value | None = None) -> NoReturn:
    raise MatchFailure(reason, value)


def check_no_activation(node: ir.Node) -> None:
    """MatchFailure when `node` has an activation fused into it."""
    if attribute(node, "fusedActivationFunction", 0):
        fail(f"{node.op_type} has a fused activation", node.outputs[0])


def scalar(value: ir.Value | None) -> float | None:
    """The number of a constant with one element, else None."""
    array = numbers(value)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def operand_and_scalar(node: ir.Node) -> tuple[ir.Value, float] | None:
    """(x, c) of a commutative node x * c or x + c with a one-element constant c, else None."""
    first, second = node.inputs
    for x, c in ((first, second), (second, first)):
        number = scalar(c)
        if x is not None and number is not None:
            return x, number
    return None


def operand_and_factor(node: ir.Node) -> tuple[ir.Value, float] | None:
    """(x, c) when `node`, MUL or DIV, is x times, or over, a constant number, x in its shape."""
    if node.op_type == "MUL":
        found = operand_and_scalar(node)
    else:
        x, number = node.inputs[0], scalar(node.inputs[1])
        found = (x, 1 / number) if x is not None and number else None
    return found if found is not None and shape_of(found[0]) == shape_of(node.outputs[0]) else None


def single_user(value: ir.Value, what: str) -> ir.Node:
    """The one node that uses `value`. MatchFailure when there are several, or the graph gives it out."""
    users = {use.node for use in value.uses()}
    if value.is_graph_output() or len(users) != 1:
        fail(f"{what} is used elsewhere too", value)
    user = users.pop()
    if user.domain != DOMAIN:
        fail(f"{what} goes into the custom operator {user.op_type}", value)
    return user


def constant_ints(value: ir.Value | None) -> list[int] | None:
    array = numbers(value)
    return None if array is None else [int(x) for x in np.reshape(array, -1)]
