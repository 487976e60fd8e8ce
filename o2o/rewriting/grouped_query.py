"""Grouped-query attention without repeated keys and values.

Exporters repeat each of the K key heads for the G query heads of its group. There are then N = K * G key
heads too, and every step copies whole caches:

    k [1,K,S,H] - [1,K,1,S,H] - BROADCAST_TO [1,K,G,S,H] - [1,N,S,H] - BATCH_MATMUL q [1,N,T,H]
                                       =>
    k [1,K,S,H] - BATCH_MATMUL q [1,K,G*T,H] - [1,N,T,S]

Here the query heads of a group become rows of one matrix. The product of weights and values is rewritten in
the same way. Operators between the two products (scale, mask, softmax) keep their shapes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from o2o.model import Model, attribute, is_dynamic, shape_of
from o2o.operators.traits import LAYOUT_OPS
from o2o.rewriting.axes import Factors, skip_reshapes
from o2o.rewriting.builder import Builder
from o2o.rewriting.dead_code_elimination import remove_dead_nodes
from o2o.rewriting.matchers import (
    MatchFailure,
    check_no_activation,
    fail,
    operand_and_scalar,
    producer_of,
    single_user,
)
from o2o.rewriting.rewire import replace_output


@dataclass(frozen=True)
class RepeatedHeads:
    """A product of rows [.., K, G, R, C] with one matrix per head, repeated for the G heads of each group.

    Attributes:
        node: The BATCH_MATMUL.
        heads: The matrices before they are repeated: K, row, column, or K, column, row if `transposed`.
        K: The number of groups.
        G: The number of heads of a group.
        transposed: Whether rows and columns are swapped between `heads` and the product.
        scale: The factor by which the matrices are multiplied after they are repeated.
    """

    node: ir.Node
    heads: ir.Value
    K: int
    G: int
    transposed: bool
    scale: float


def fold_grouped_queries(model: Model, graph: ir.Graph) -> int:
    """Rewrite each BATCH_MATMUL whose right operand repeats heads, in place.

    Args:
        model: The model of `graph`; its signatures stay in step.
        graph: Changed in place.

    Returns:
        The number of products rewritten.
    """
    count = 0
    for node in list(graph):
        if node.op_type == "BATCH_MATMUL":
            try:
                match = match_repeated_heads(node)
            except MatchFailure:
                continue
            _fold(model, graph, match)
            count += 1
    if count:
        remove_dead_nodes(graph)
    return count


def match_repeated_heads(node: ir.Node) -> RepeatedHeads:
    """Match a product with repeated heads.

    Args:
        node: A BATCH_MATMUL.

    Returns:
        The matrices before they are repeated, and how they are repeated.

    Raises:
        MatchFailure: The right operand does not repeat heads.
    """
    left, right = node.inputs[:2]
    assert left is not None
    assert right is not None
    output = node.outputs[0]
    for value in (left, right, output):
        if value.dtype is None or not value.dtype.is_floating_point() or is_dynamic(value):
            fail("it does not multiply floats of a fixed shape", value)
    repeat, after, scale = _repeat(right)
    value = repeat.outputs[0]
    while (user := single_user(value, "the repeated tensor")) is not node:
        value = user.outputs[0]
    if left is right or attribute(node, "adjointLhs", 0):
        fail("its left operand is transposed", left)

    before, shape = shape_of(repeat.inputs[0]), shape_of(repeat.outputs[0])  # type: ignore[arg-type]
    before = (1,) * (len(shape) - len(before)) + before
    repeated = [axis for axis in range(len(shape)) if before[axis] != shape[axis]]
    if len(repeated) != 1:
        fail("it repeats more or fewer axes than one", repeat.outputs[0])
    names = [f"axis{axis}" for axis in range(len(shape))]
    names[repeated[0]] = "G"
    factors = Factors(dict(zip(names, shape, strict=True)))
    axes = factors.through(after, factors.axes(*((name,) for name in names)))
    *batch, rows, columns = axes
    heads = [name for axis in batch for name in axis]
    if not heads or heads[-1] != "G":
        fail("the repeated axis is not the axis of a group's heads", right)
    if shape_of(left)[:-2] != shape_of(right)[:-2]:
        fail("its operands differ in their heads", output)
    source_axes = [name for name in names if name != "G" and factors.sizes[name] != 1]
    if source_axes not in ([*heads[:-1], *rows, *columns], [*heads[:-1], *columns, *rows]):
        fail("the matrices are transposed across heads", right)
    source = repeat.inputs[0]
    assert source is not None
    return RepeatedHeads(
        node,
        skip_reshapes(source),
        K=math.prod(factors.sizes[name] for name in heads[:-1]),
        G=factors.sizes["G"],
        transposed=source_axes != [*heads[:-1], *rows, *columns],
        scale=scale,
    )


def _repeat(value: ir.Value) -> tuple[ir.Node, list[ir.Node], float]:
    """The BROADCAST_TO from which `value` comes, the layout operators after it, and the scale after it."""
    after: list[ir.Node] = []
    scale = 1.0
    while (node := producer_of(value, "MUL", *LAYOUT_OPS)) is not None:
        if node.op_type == "BROADCAST_TO":
            return node, after[::-1], scale
        source = node.inputs[0]
        if node.op_type == "MUL":
            check_no_activation(node)
            product = operand_and_scalar(node)
            if product is None or shape_of(product[0]) != shape_of(value):
                break
            source, factor = product
            scale *= factor
        else:
            after.append(node)
        assert source is not None
        value = source
    fail("the right operand does not come from a BROADCAST_TO", value)


def _fold(model: Model, graph: ir.Graph, match: RepeatedHeads) -> None:
    node, K, G = match.node, match.K, match.G
    left, right = node.inputs[:2]
    assert left is not None
    assert right is not None
    old = node.outputs[0]
    op = Builder(graph, before=node, prefix=f"{old.name}/")
    R, C = shape_of(left)[-2:]
    *_, a, b = shape_of(right)
    if match.scale != 1:
        factor = op.constant(match.scale, "scale", np.float32)
        # There are fewer queries (or weights) than cache rows: scale the queries.
        left = op.node("MUL", [left, factor], shape_of(left), name="scaled")
    heads = op.reshape(match.heads, [1, K, *((b, a) if match.transposed else (a, b))], name="heads")
    rows = op.reshape(skip_reshapes(left), [1, K, G * R, C], name="groups")
    adjoint = bool(attribute(node, "adjointRhs", 0)) != match.transposed
    width = shape_of(old)[-1]
    product = op.node(
        "BATCH_MATMUL",
        [rows, heads],
        [1, K, G * R, width],
        name="grouped",
        adjointLhs=False,
        adjointRhs=adjoint,
    )
    for use in list(old.uses()):  # two reshapes in a row become one
        if use.node.op_type == "RESHAPE" and use.idx == 0:
            use.node.replace_input_with(0, product)
    if old.uses() or old.is_graph_output():
        replace_output(model, old, op.reshape(product, shape_of(old), name="ungrouped"))
