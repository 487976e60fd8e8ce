"""BATCH_MATMUL with a constant operand, rewritten as FULLY_CONNECTED."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import is_constant, is_plain, storage_key, with_shape
from o2o.formats.unbound_tensor import UnboundTensor
from o2o.model import DOMAIN, Model, attribute, shape_of
from o2o.rewriting.builder import Builder, add_tensor
from o2o.rewriting.matchers import constant_ints, fail
from o2o.rewriting.rewire import replace_output
from o2o.rewriting.rewrite_rule import RewriteRule

LEFT, RIGHT = 0, 1
ADJOINT = ("adjointLhs", "adjointRhs")


@dataclass(frozen=True)
class Product:
    """BATCH_MATMUL of a constant and x, and the TRANSPOSE of its result, if any.

    Attributes:
        matmul: A x, A [..., M, K] and x [..., K, N]; or x A, x [..., M, K] and A [K, N].
        side: `LEFT` or `RIGHT`, the operand that is A.
        transposed: A TRANSPOSE of the last two axes of A x, its only user.
    """

    matmul: ir.Node
    side: int
    transposed: ir.Node | None = None

    @property
    def constant(self) -> ir.Value:
        value = self.matmul.inputs[self.side]
        assert value is not None
        return value

    @property
    def x(self) -> ir.Value:
        value = self.matmul.inputs[1 - self.side]
        assert value is not None
        return value

    def is_adjoint(self, side: int) -> bool:
        """Whether the operator transposes an operand."""
        return bool(attribute(self.matmul, ADJOINT[side], 0))


class BmmConstRule(RewriteRule):
    """Replace A x by (x' A')', and x A by x (A')', where A is constant: FULLY_CONNECTED with weights A or A'."""

    anchors = ("BATCH_MATMUL",)

    def __init__(self) -> None:
        self._transposed: dict[Hashable, ir.TensorProtocol] = {}  # by storage: graphs share weights

    def candidates(self, graph: ir.Graph) -> list[ir.Node]:
        return [node for node in super().candidates(graph) if any(map(_is_constant, node.inputs))]

    def match(self, node: ir.Node) -> Product:
        product = Product(node, LEFT if _is_constant(node.inputs[LEFT]) else RIGHT)
        constant, x = product.constant, product.x
        if not is_plain(constant) or constant.dtype is None or not constant.dtype.is_floating_point():
            fail("the constant does not hold floats", constant)
        if constant.dtype != x.dtype:
            fail("the operands differ in dtype", x)
        if any(dim != 1 for dim in shape_of(constant)[:-2]):
            fail("the constant differs from batch to batch", constant)
        if len(shape_of(node.outputs[0])) != len(shape_of(x)):
            fail("the constant adds batch axes", node.outputs[0])
        if product.side == RIGHT:
            return product
        return Product(node, LEFT, _transpose_of(node.outputs[0]))

    def rewrite(self, model: Model, graph: ir.Graph, match: Product) -> None:
        node, x = match.matmul, match.x
        op = Builder(graph, before=node)
        if match.is_adjoint(1 - match.side) != (match.side == LEFT):  # its last axis is to be K
            x = _swap(op, x, "rhs" if match.side == LEFT else "lhs")
        weights = add_tensor(graph, self._weights(match), match.constant.name or "weights")
        product = op.node(
            "FULLY_CONNECTED",
            [x, weights, None],
            [*shape_of(x)[:-1], shape_of(weights)[0]],
            keepNumDims=True,
            weightsFormat=0,
            fusedActivationFunction=0,
        )
        if match.transposed is not None:
            replace_output(model, match.transposed.outputs[0], product)
        elif match.side == LEFT:
            replace_output(model, node.outputs[0], _swap(op, product, "product"))
        else:
            replace_output(model, node.outputs[0], product)

    def _weights(self, match: Product) -> ir.TensorProtocol:
        """The weights [rows, K], over the same bytes unless they must be transposed."""
        tensor = match.constant.const_value
        assert tensor is not None
        name = match.constant.name or ""
        matrix = with_shape(tensor, shape_of(match.constant)[-2:], name)
        if match.is_adjoint(match.side) == (match.side == RIGHT):
            return matrix
        if isinstance(matrix, UnboundTensor):
            return matrix.transpose(name)
        key = storage_key(tensor), matrix.shape
        if key not in self._transposed:
            self._transposed[key] = ir.Tensor(np.ascontiguousarray(matrix.numpy().T), matrix.dtype)
        return self._transposed[key]


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
