"""`fuse.bmm_lhs_const.py`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from o2o.filters.fusion import Fusion
from o2o.formats.tensors import are_numbers, is_constant, with_shape
from o2o.model import DOMAIN, Model, attribute, shape_of
from o2o.rewriting.builder import Builder, add_tensor
from o2o.rewriting.matchers import constant_ints, miss
from o2o.rewriting.rewire import replace_output


@dataclass(frozen=True)
class Product:
    """BATCH_MATMUL(const A [..., M, K], x [..., K, N]); `transposed` is the TRANSPOSE behind it, if any."""

    matmul: ir.Node
    left: ir.Value
    transposed: ir.Node | None


class FuseBmmLhsConst(Fusion):
    """Turn BATCH_MATMUL with a constant left operand into FULLY_CONNECTED.

        A const [.., M, K] -+                                  x [.., K, N] - TRANSPOSE [.., N, K]
                            BATCH_MATMUL [.., M, N]     =>                        |
        x [.., K, N] -------+      |                              A [M, K] -- FULLY_CONNECTED [.., N, M]
                               TRANSPOSE [.., N, M]

    A x = (x' A')', and x' A' is what FULLY_CONNECTED computes with A for its weights. A TRANSPOSE of the
    result that is there already is what comes out; else one is added. Transposing x is a reshape when K or
    N is 1, as in rotary frequencies times positions.
    Left alone: a left operand that differs from batch to batch, or is not float.
    """

    name = "fuse.bmm_lhs_const.py"
    usage_example = "merge.circles.py prefill.circle decode.circle | fuse.bmm_lhs_const.py > model.circle"
    anchor = ("BATCH_MATMUL",)
    noun = "product"

    def candidates(self, graph: ir.Graph) -> list[ir.Node]:
        return [n for n in super().candidates(graph) if n.inputs[0] is not None and is_constant(n.inputs[0])]

    def match(self, node: ir.Node) -> Product:
        left, right = node.inputs
        assert left is not None
        assert right is not None
        if not are_numbers(left) or left.dtype is None or not left.dtype.is_floating_point():
            miss("the constant is not of floats", left)
        if left.dtype != right.dtype:
            miss("the operands differ in dtype", right)
        if any(dim != 1 for dim in shape_of(left)[:-2]):
            miss("the constant differs from batch to batch", left)
        if len(shape_of(node.outputs[0])) != len(shape_of(right)):
            miss("the constant adds batch axes", node.outputs[0])
        return Product(node, left, self._transpose_of(node.outputs[0]))

    def _transpose_of(self, value: ir.Value) -> ir.Node | None:
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


def _matrix(match: Product) -> ir.TensorProtocol:
    """The constant as [M, K]: the same bytes, where it is not to be transposed."""
    tensor = match.left.const_value
    assert tensor is not None
    matrix = with_shape(tensor, shape_of(match.left)[-2:], match.left.name or "")
    if attribute(match.matmul, "adjointLhs", 0):
        return ir.Tensor(np.ascontiguousarray(matrix.numpy().T), matrix.dtype)
    return matrix


def _swap(op: Builder, x: ir.Value, name: str) -> ir.Value:
    """x with its last two axes swapped; a reshape when one of them is 1."""
    *batch, rows, columns = shape_of(x)
    if 1 in (rows, columns):
        return op.reshape(x, [*batch, columns, rows], name=name)
    rank = len(shape_of(x))
    return op.transpose(x, [*range(rank - 2), rank - 1, rank - 2], name=name)


main = FuseBmmLhsConst.main
