"""BATCH_MATMUL with a constant operand, rewritten as FULLY_CONNECTED."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from o2o.formats.tensors import is_constant, is_plain, with_shape
from o2o.formats.transposed_tensor import TransposedTensor
from o2o.formats.unbound_tensor import UnboundTensor
from o2o.model import DOMAIN, Model, attribute, shape_of
from o2o.rewriting.builder import Builder, add_tensor
from o2o.rewriting.matchers import constant_ints, fail
from o2o.rewriting.rewire import replace_output
from o2o.rewriting.rewrite_rule import RewriteRule

ADJOINT = ("adjointLhs", "adjointRhs")


@dataclass(frozen=True)
class Product:
    """A BATCH_MATMUL with a constant operand, as a product of x [..., rows, K] and weights [columns, K].

    Attributes:
        matmul: A x, where A is constant, or x A.
        constant: A.
        x: The other operand.
        swaps_x: Whether the last two axes of x must be swapped before.
        weights: A or its transpose, as a matrix.
        result: The value to replace: A x, its transpose if a TRANSPOSE is its only user, or x A.
        swaps_result: Whether the last two axes must be swapped after.
    """

    matmul: ir.Node
    constant: ir.Value
    x: ir.Value
    swaps_x: bool
    weights: ir.TensorProtocol
    result: ir.Value
    swaps_result: bool


class BmmConstRule(RewriteRule):
    """Replace A x by (x' A')', and x A by x (A')', A constant. FULLY_CONNECTED has the weights A or A'."""

    anchors = ("BATCH_MATMUL",)

    def candidates(self, graph: ir.Graph) -> list[ir.Node]:
        return [node for node in super().candidates(graph) if any(map(_is_constant, node.inputs))]

    def match(self, node: ir.Node) -> Product:
        is_left = _is_constant(node.inputs[0])
        constant, x = node.inputs if is_left else node.inputs[::-1]
        assert constant is not None
        assert x is not None
        if not is_plain(constant) or constant.dtype is None or not constant.dtype.is_floating_point():
            fail("the constant does not hold floats", constant)
        if constant.dtype != x.dtype:
            fail("the operands differ in dtype", x)
        if any(dim != 1 for dim in shape_of(constant)[:-2]):
            fail("the constant differs from batch to batch", constant)
        result = node.outputs[0]
        if len(shape_of(result)) != len(shape_of(x)):
            fail("the constant adds batch axes", result)
        left_swaps, right_swaps = (bool(attribute(node, name, 0)) for name in ADJOINT)
        if not is_left:
            return Product(node, constant, x, left_swaps, _weights(constant, not right_swaps), result, False)
        weights, transposed = _weights(constant, left_swaps), _transpose_of(result)
        if transposed is None:
            return Product(node, constant, x, not right_swaps, weights, result, True)
        return Product(node, constant, x, not right_swaps, weights, transposed.outputs[0], False)

    def rewrite(self, model: Model, graph: ir.Graph, match: Product) -> None:
        op = Builder(graph, before=match.matmul)
        x = match.x
        if match.swaps_x:
            x = _swap(op, x, "lhs" if x is match.matmul.inputs[0] else "rhs")
        weights = _weights_value(graph, match)
        product = op.node(
            "FULLY_CONNECTED",
            [x, weights, None],
            [*shape_of(x)[:-1], shape_of(weights)[0]],
            keepNumDims=True,
            weightsFormat=0,
            fusedActivationFunction=0,
        )
        replace_output(model, match.result, _swap(op, product, "product") if match.swaps_result else product)


def _weights_value(graph: ir.Graph, match: Product) -> ir.Value:
    """The constant with other axes; another constant if it has other users."""
    value = match.constant
    if value.is_graph_output() or {use.node for use in value.uses()} != {match.matmul}:
        return add_tensor(graph, match.weights, value.name or "weights")
    value.const_value, value.shape = match.weights, ir.Shape(match.weights.shape.numpy())
    return value


def _weights(value: ir.Value, swapped: bool) -> ir.TensorProtocol:
    """A constant as a matrix, over the same bytes unless its axes are swapped."""
    tensor, name = value.const_value, value.name or ""
    assert tensor is not None
    matrix = with_shape(tensor, shape_of(value)[-2:], name)
    if not swapped:
        return matrix
    if not isinstance(matrix, UnboundTensor):
        return TransposedTensor(name, matrix)
    if not matrix.is_matrix:
        stored = f"{matrix.tensor_name} of the checkpoint is {list(matrix.stored_shape)}"
        fail(f"{stored}: bind weights first", value)
    return matrix.transpose(name)


def _is_constant(value: ir.Value | None) -> bool:
    return value is not None and is_constant(value)


def _transpose_of(value: ir.Value) -> ir.Node | None:
    """The one user of `value`, if it swaps its last two axes and does nothing else."""
    users = {use.node for use in value.uses()}
    if value.is_graph_output() or len(users) != 1:
        return None
    user = users.pop()
    if user.domain != DOMAIN or user.op_type != "TRANSPOSE":
        return None
    rank = len(shape_of(value))
    swapped = [*range(rank - 2), rank - 1, rank - 2]
    return user if constant_ints(user.inputs[1]) == swapped else None


def _swap(op: Builder, x: ir.Value, name: str) -> ir.Value:
    """`x` with its last two axes swapped: by RESHAPE if one of them is 1, else by TRANSPOSE."""
    *batch, rows, columns = shape_of(x)
    if 1 in (rows, columns):
        return op.reshape(x, [*batch, columns, rows], name=name)
    rank = len(shape_of(x))
    return op.transpose(x, [*range(rank - 2), rank - 1, rank - 2], name=name)
