"""BATCH_MATMUL with a constant operand, rewritten as FULLY_CONNECTED."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from o2o.formats.tensors import is_plain, with_shape
from o2o.formats.transposed_tensor import TransposedTensor
from o2o.formats.unbound_tensor import UnboundTensor
from o2o.model import DOMAIN, Model, attribute, shape_of
from o2o.rewriting.builder import Builder, add_tensor
from o2o.rewriting.constant_matrices import ConstantMatrix, constant_behind, constant_matrix
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
        return [
            node
            for node in super().candidates(graph)
            if any(constant_behind(value) is not None for value in node.inputs)
        ]

    def match(self, node: ir.Node) -> Product:
        left, right = node.inputs
        assert left is not None
        assert right is not None
        result, is_left = node.outputs[0], constant_behind(left) is not None
        operand, x = (left, right) if is_left else (right, left)
        constant = constant_behind(operand)
        assert constant is not None
        if not is_plain(constant) or constant.dtype is None or not constant.dtype.is_floating_point():
            fail("the constant does not hold floats", constant)
        if constant.dtype != x.dtype:
            fail("the operands differ in dtype", x)
        matrix = constant_matrix(operand)
        if matrix is None:
            fail("the constant differs from batch to batch, or its elements are moved", operand)
        if shape_of(result)[:-2] != shape_of(x)[:-2]:
            fail("the constant adds batch axes", result)
        left_swaps, right_swaps = (bool(attribute(node, name, 0)) for name in ADJOINT)
        if not is_left:
            weights = _weights(matrix if right_swaps else matrix.transposed)
            return Product(node, constant, x, left_swaps, weights, result, False)
        weights, transposed = _weights(matrix.transposed if left_swaps else matrix), _transpose_of(result)
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


def _weights(matrix: ConstantMatrix) -> ir.TensorProtocol:
    """A constant matrix, over the same bytes unless it is transposed."""
    tensor, name = matrix.constant.const_value, matrix.constant.name or ""
    assert tensor is not None
    if not matrix.is_transposed:
        return with_shape(tensor, (matrix.rows, matrix.columns), name)
    stored = with_shape(tensor, (matrix.columns, matrix.rows), name)
    if not isinstance(stored, UnboundTensor):
        return TransposedTensor(name, stored)
    if not stored.is_matrix:
        shape = f"{stored.tensor_name} of the checkpoint is {list(stored.stored_shape)}"
        fail(f"{shape}: bind weights first", matrix.constant)
    return stored.transpose(name)


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
