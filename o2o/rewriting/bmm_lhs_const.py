"""BATCH_MATMUL with a constant left operand, rewritten as FULLY_CONNECTED."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import is_constant, is_plain, with_shape
from o2o.model import DOMAIN, Model, attribute, shape_of
from o2o.rewriting.builder import Builder, add_tensor
from o2o.rewriting.matchers import constant_ints, fail
from o2o.rewriting.rewire import replace_output
from o2o.rewriting.rewrite_rule import RewriteRule


@dataclass(frozen=True)
class Product:
    """BATCH_MATMUL(constant A [..., M, K], x [..., K, N]), and the TRANSPOSE of its result, if any."""

    matmul: ir.Node
    left: ir.Value
    transposed: ir.Node | None


class BmmLhsConstRule(RewriteRule):
    """Replace A x, A constant, by (x' A')': FULLY_CONNECTED with the weights A."""

    anchors = ("BATCH_MATMUL",)

    def candidates(self, graph: ir.Graph) -> list[ir.Node]:
        return [n for n in super().candidates(graph) if n.inputs[0] is not None and is_constant(n.inputs[0])]

    def match(self, node: ir.Node) -> Product:
        left, right = node.inputs
        assert left is not None
        assert right is not None
        if not is_plain(left) or left.dtype is None or not left.dtype.is_floating_point():
            fail("the constant does not hold floats", left)
        if left.dtype != right.dtype:
            fail("the operands differ in dtype", right)
        if any(dim != 1 for dim in shape_of(left)[:-2]):
            fail("the constant differs from batch to batch", left)
        if len(shape_of(node.outputs[0])) != len(shape_of(right)):
            fail("the constant adds batch axes", node.outputs[0])
        return Product(node, left, _transpose_of(node.outputs[0]))

    def rewrite(self, model: Model, graph: ir.Graph, match: Product) -> None:
        node = match.matmul
        op = Builder(graph, before=node)
        x = node.inputs[1]
        assert x is not None
        shape = shape_of(x)
        if not attribute(node, "adjointRhs", 0):
            x = _swap(op, x, "rhs")
            shape = shape_of(x)
        weights = add_tensor(graph, _matrix(match), match.left.name or "weights")
        product = op.node(
            "FULLY_CONNECTED",
            [x, weights, None],
            [*shape[:-1], shape_of(weights)[0]],
            keepNumDims=True,
            weightsFormat=0,
            fusedActivationFunction=0,
        )
        if match.transposed is not None:
            replace_output(model, match.transposed.outputs[0], product)
        else:
            replace_output(model, node.outputs[0], _swap(op, product, "product"))


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


def _matrix(match: Product) -> ir.TensorProtocol:
    """The constant as [M, K], over the same bytes unless it must be transposed."""
    tensor = match.left.const_value
    assert tensor is not None
    matrix = with_shape(tensor, shape_of(match.left)[-2:], match.left.name or "")
    if attribute(match.matmul, "adjointLhs", 0):
        return ir.Tensor(np.ascontiguousarray(matrix.numpy().T), matrix.dtype)
    return matrix


def _swap(op: Builder, x: ir.Value, name: str) -> ir.Value:
    """`x` with its last two axes swapped: by RESHAPE if one of them is 1, else by TRANSPOSE."""
    *batch, rows, columns = shape_of(x)
    if 1 in (rows, columns):
        return op.reshape(x, [*batch, columns, rows], name=name)
    rank = len(shape_of(x))
    return op.transpose(x, [*range(rank - 2), rank - 1, rank - 2], name=name)
