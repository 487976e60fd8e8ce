"""Constant matrices behind operators that only move elements: reshapes, transposes, broadcasts of batches.

Weights are inputs while a graph is exported, so these operators stay in front of their products.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from o2o.formats.tensors import is_constant
from o2o.model import DOMAIN, shape_of
from o2o.operators.traits import LAYOUT_OPS, RESHAPE_OPS
from o2o.rewriting.matchers import constant_ints


@dataclass(frozen=True)
class ConstantMatrix:
    """A matrix [rows, columns] whose numbers are those of a constant.

    Attributes:
        constant: The constant, of any shape.
        rows: The rows of the matrix.
        columns: The columns of the matrix.
        is_transposed: Whether the constant holds [columns, rows], else [rows, columns].
    """

    constant: ir.Value
    rows: int
    columns: int
    is_transposed: bool = False

    @property
    def transposed(self) -> ConstantMatrix:
        """The transpose of the matrix."""
        return ConstantMatrix(self.constant, self.columns, self.rows, not self.is_transposed)


def constant_behind(value: ir.Value | None) -> ir.Value | None:
    """Return the constant that a value has the elements of.

    Args:
        value: Any value.

    Returns:
        The constant; None if another operator than one that moves elements computes the value.
    """
    while value is not None and not is_constant(value):
        node = _layout_op(value)
        value = node.inputs[0] if node is not None else None
    return value


def constant_matrix(value: ir.Value) -> ConstantMatrix | None:
    """Return the one matrix of a value, which all batches share.

    Args:
        value: A value [..., rows, columns] with a `constant_behind`.

    Returns:
        The matrix; None if batches have different ones, or if its elements are in another order.
    """
    *batch, rows, columns = shape_of(value)
    if math.prod(batch) != 1:
        node = _layout_op(value)
        source = node.inputs[0] if node is not None and node.op_type == "BROADCAST_TO" else None
        if source is None or shape_of(source)[-2:] != (rows, columns):
            return None
        return constant_matrix(source)
    return _in_order(value, rows, columns)


def _in_order(value: ir.Value | None, rows: int, columns: int) -> ConstantMatrix | None:
    """The elements of `value`, in C order, as a matrix."""
    if value is None or math.prod(shape_of(value)) != rows * columns:
        return None
    if is_constant(value):
        return ConstantMatrix(value, rows, columns)
    node = _layout_op(value)
    if node is None:
        return None
    if node.op_type in (*RESHAPE_OPS, "BROADCAST_TO"):  # of as many elements: axes of size 1 are added
        return _in_order(node.inputs[0], rows, columns)
    sizes, axes = shape_of(node.inputs[0]), constant_ints(node.inputs[1])  # type: ignore[arg-type]
    if axes is None:
        return None
    axes = [axis % len(sizes) for axis in axes if sizes[axis] != 1]
    if axes == sorted(axes):
        return _in_order(node.inputs[0], rows, columns)
    split = axes.index(min(axes))  # the axes from here on were the first ones
    if axes[split:] + axes[:split] != sorted(axes) or math.prod(sizes[a] for a in axes[:split]) != rows:
        return None
    inner = _in_order(node.inputs[0], columns, rows)
    return inner.transposed if inner is not None else None


def _layout_op(value: ir.Value) -> ir.Node | None:
    node = value.producer()
    return node if node is not None and node.domain == DOMAIN and node.op_type in LAYOUT_OPS else None
