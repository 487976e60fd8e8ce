"""RoPE, rotary position embedding: matching of the forms that exporters write, and fusion into ROPE.

x * cos + concat(-x[..., H/2:], x[..., :H/2]) * sin          (Su et al. 2021; halves are paired)
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from o2o.model import Model, attribute, shape_of
from o2o.operators.reference import NotEvaluable, slice_bounds
from o2o.rewriting.axes import skip_reshapes
from o2o.rewriting.builder import Builder
from o2o.rewriting.matchers import (
    check_no_activation,
    constant_ints,
    fail,
    operand_and_scalar,
    producer_of,
    require_producer,
)
from o2o.rewriting.rewire import replace_output
from o2o.rewriting.rewrite_rule import RewriteRule


@dataclass(frozen=True)
class Rotation:
    """x, and the tables cos and sin by which it is rotated. They broadcast to the shape of x."""

    x: ir.Value
    cos: ir.Value
    sin: ir.Value


class RopeRule(RewriteRule):
    """Fuse the rotation of x [B, N, T, H] by tables [1, 1, T, H] into ROPE."""

    anchors = ("ADD",)

    def candidates(self, graph: ir.Graph) -> list[ir.Node]:
        """See `RewriteRule`: only sums with a term that multiplies a concatenation."""
        sums = super().candidates(graph)
        return [node for node in sums if _multiplies_concatenation(node) or rotates_neighbors(node)]

    def match(self, node: ir.Node) -> tuple[ir.Node, Rotation]:
        """See `RewriteRule`."""
        rotation = match_rope(node.outputs[0])
        x, tables = shape_of(rotation.x), (shape_of(rotation.cos), shape_of(rotation.sin))
        if len(x) != 4:
            fail("ROPE takes a tensor of four axes", rotation.x)
        for table, value in zip(tables, (rotation.cos, rotation.sin), strict=True):
            if table not in ((1, 1, x[2], x[3]), (1, 1, 1, x[3])):
                fail(f"a rotation table should be [1, 1, {x[2]}, {x[3]}]", value)
        return node, rotation

    def rewrite(self, model: Model, graph: ir.Graph, match: tuple[ir.Node, Rotation]) -> None:
        """See `RewriteRule`."""
        node, rotation = match
        old = node.outputs[0]
        op = Builder(graph, before=node)
        new = op.node("ROPE", [rotation.x, rotation.sin, rotation.cos], shape_of(old), mode=0)
        replace_output(model, old, new)


def _multiplies_concatenation(add: ir.Node) -> bool:
    for term in add.inputs:
        product = producer_of(term, "MUL")
        if product is not None and any(producer_of(factor, "CONCATENATION") for factor in product.inputs):
            return True
    return False


def match_rope(value: ir.Value) -> Rotation:
    """Match the rotation that computes `value`, fused (ROPE) or decomposed.

    Args:
        value: The rotated tensor [.., H].

    Returns:
        The tensor before the rotation, and its tables.

    Raises:
        MatchFailure: `value` is no rotated tensor, or ROPE pairs neighbors.
    """
    fused = producer_of(value, "ROPE")
    if fused is not None:
        x, sin, cos = fused.inputs
        if attribute(fused, "mode", 0) != 0:
            fail("ROPE pairs neighbors (GPT_J), not halves", value)
        assert x is not None
        assert sin is not None
        assert cos is not None
        return Rotation(x, cos, sin)
    add = require_producer(value, "a rotated tensor", "ADD")
    check_no_activation(add)
    first, second = (
        require_producer(v, "each term of a rotation", "MUL") for v in add.inputs if v is not None
    )
    for cos_term, sin_term in ((first, second), (second, first)):
        for half in sin_term.inputs:
            concat = producer_of(half, "CONCATENATION")
            if concat is None or half is None:
                continue
            x = _unrotated(concat)
            if x is None or x not in cos_term.inputs:
                continue
            check_no_activation(cos_term)
            check_no_activation(sin_term)
            return Rotation(x, _other_operand(cos_term, x), _other_operand(sin_term, half))
    if rotates_neighbors(add):
        fail("neighboring elements are rotated (GPT-J), not the halves of a head", value)
    fail("no term of the sum is a rotated half times a table", value)


def rotates_neighbors(add: ir.Node) -> bool:
    """Whether a sum rotates each element with its neighbor, as GPT-J does.

    Args:
        add: An ADD.

    Returns:
        True if one of its terms multiplies (-x1, x0, -x3, x2, ...) by a table.
    """
    for term in add.inputs:
        product = producer_of(term, "MUL")
        for factor in product.inputs if product is not None else ():
            joined = (
                producer_of(skip_reshapes(factor), "CONCATENATION", "PACK") if factor is not None else None
            )
            if joined is None or len(joined.inputs) != 2 or joined.inputs[0] is None:
                continue
            shape = shape_of(joined.outputs[0])
            pairs = shape[-1] == 2 and attribute(joined, "axis", 0) % len(shape) == len(shape) - 1
            if pairs and _negated(skip_reshapes(joined.inputs[0])) is not None:
                return True
    return False


def _other_operand(node: ir.Node, value: ir.Value) -> ir.Value:
    """The operand of `node` that is not `value`; `value` itself if both are."""
    first, second = node.inputs
    other = second if first is value else first
    assert other is not None
    return other


def _unrotated(concat: ir.Node) -> ir.Value | None:
    """x, if `concat` is concat(-x[..., H/2:], x[..., :H/2]) over the last axis."""
    rank = len(shape_of(concat.outputs[0]))
    if len(concat.inputs) != 2 or attribute(concat, "axis", 0) not in (-1, rank - 1):
        return None
    upper, lower = concat.inputs
    assert upper is not None
    negated = _negated(upper)
    if negated is None:
        return None
    check_no_activation(concat)
    x_upper, x_lower = _half(negated, upper=True), _half(lower, upper=False)
    return x_lower if x_lower is not None and x_lower is x_upper else None


def _negated(value: ir.Value) -> ir.Value | None:
    """x, if `value` is -x."""
    if (node := producer_of(value, "NEG")) is not None:
        return node.inputs[0]
    if (node := producer_of(value, "MUL")) is not None:
        product = operand_and_scalar(node)
        if product is None or product[1] != -1:
            return None
        check_no_activation(node)
        return product[0]
    return None


def _half(value: ir.Value | None, upper: bool) -> ir.Value | None:
    """x, if `value` is the upper or lower half of x along the last axis."""
    node = producer_of(value, "STRIDED_SLICE", "SLICE", "SPLIT")
    if node is None:
        return None
    if node.op_type == "SPLIT":
        return _half_of_split(node, value, upper)
    x = node.inputs[0]
    assert x is not None
    shape = shape_of(x)
    H = shape[-1]
    half = (H // 2, H, 1) if upper else (0, H // 2, 1)
    try:
        bounds = slice_bounds(node)
    except NotEvaluable:
        return None
    whole = [(0, dim, 1) for dim in shape[:-1]]
    return x if H % 2 == 0 and bounds == [*whole, half] else None


def _half_of_split(node: ir.Node, value: ir.Value | None, upper: bool) -> ir.Value | None:
    axis, x = node.inputs
    assert x is not None
    rank = len(shape_of(x))
    if len(node.outputs) != 2 or constant_ints(axis) not in ([-1], [rank - 1]):
        return None
    return x if node.outputs[1 if upper else 0] is value else None
