"""Finding the parts of an attention block: up from its softmax to q k', down to its result.

Nothing is proven here but what an operator is and what it reads; `proof` and `visibility` do the rest.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import onnx_ir as ir

from o2o.contract import Layout
from o2o.model import attribute, shape_of
from o2o.operators.facts import LAYOUT_OPS, RESHAPE_OPS
from o2o.rewriting.axes import trace_layout
from o2o.rewriting.matchers import (
    check_no_activation,
    fail,
    operand_and_factor,
    producer_of,
    require_producer,
    single_user,
)
from o2o.rewriting.rope import Rotation, match_rope


@dataclass
class Path:
    """How a value comes from its source: layout operators between, and what it is multiplied by."""

    source: ir.Value
    layout: list[ir.Node]
    scale: float = 1.0


@dataclass
class Scores:
    """The way from q k' to the softmax: layout operators, one scale, at most one mask."""

    matmul: ir.Node
    steps: list[ir.Node] = field(default_factory=list)  # from the product down, masks' nodes included
    scale: float = 1.0
    mask: ir.Value | None = None
    masked_by: ir.Node | None = None


@dataclass
class Projection:
    """A head projection x w' (FULLY_CONNECTED without bias)."""

    node: ir.Node
    x: ir.Value
    w: ir.Value


@dataclass
class CacheUpdate:
    """Keys or values as the scores see them: the new ones, and the cache they join, if any.

    way: layout operators from the cache to where it is joined. axis: that of the tokens there. layout: of the
    cache itself. given_out: outputs of the graph that are the cache as it is written here.
    """

    node: ir.Node | None = None  # CONCATENATION or DYNAMIC_UPDATE_SLICE
    past: ir.Value | None = None
    way: list[ir.Node] = field(default_factory=list)
    axis: int = 2
    layout: Layout | None = None
    given_out: list[ir.Value] = field(default_factory=list)


def find_scores(softmax: ir.Node) -> Scores:
    """Up from the softmax to q k'."""
    value = softmax.inputs[0]
    assert value is not None
    beta = float(attribute(softmax, "beta", 1.0))
    steps: list[ir.Node] = []
    scale = 1.0
    masks: list[tuple[ir.Value, ir.Node]] = []
    while True:
        node = require_producer(
            value,
            "the scores",
            "BATCH_MATMUL",
            "ADD",
            "MUL",
            "DIV",
            "SELECT_V2",
            "SELECT",
            *LAYOUT_OPS,
        )
        if node.op_type == "BATCH_MATMUL":
            break
        steps.append(node)
        check_no_activation(node)
        if node.op_type in ("MUL", "DIV") and (factor := operand_and_factor(node)) is not None:
            value, number = factor
            scale *= number
            continue
        if node.op_type in ("ADD", "SELECT", "SELECT_V2"):
            if scale != 1.0 and not masks:
                fail("the scale is applied to the mask too", node.outputs[0])
            value, mask = _masked(node)
            masks.append((mask, node))
            continue
        if node.op_type in ("MUL", "DIV"):
            fail("the scores are multiplied by something that is not one constant number", node.outputs[0])
        value = node.inputs[0]
        assert value is not None
    if len(masks) > 1:
        fail("the scores have two masks", masks[0][0])
    if beta != 1 and masks:
        fail("the softmax scales the mask too", softmax.outputs[0])
    found = Scores(node, steps[::-1], scale * beta)
    if masks:
        found.mask, found.masked_by = masks[0]
    return found


def _masked(node: ir.Node) -> tuple[ir.Value, ir.Value]:
    """(scores, mask) of the node that masks: the scores are the operand that leads to q k'."""
    if node.op_type in ("SELECT", "SELECT_V2"):
        fail("the mask selects instead of being added", node.outputs[0])
    first, second = node.inputs
    assert first is not None
    assert second is not None
    for scores, mask in ((first, second), (second, first)):
        if _leads_to_product(scores):
            if shape_of(scores) != shape_of(node.outputs[0]):
                fail("the mask is larger than the scores", mask)
            return scores, mask
    fail("no operand of the sum comes from a product of q and k", node.outputs[0])


def _leads_to_product(value: ir.Value) -> bool:
    while (node := producer_of(value, "MUL", "DIV", "ADD", *LAYOUT_OPS)) is not None:
        if node.op_type == "ADD":
            return any(v is not None and _leads_to_product(v) for v in node.inputs)
        factor = operand_and_factor(node) if node.op_type in ("MUL", "DIV") else None
        value = factor[0] if factor is not None else node.inputs[0]  # type: ignore[assignment]
    return producer_of(value, "BATCH_MATMUL") is not None


def follow_down(value: ir.Value, what: str, until: str) -> tuple[ir.Node, list[ir.Value]]:
    """Down from `value` through layout operators to the one `until`; the values on the way."""
    way = [value]
    while True:
        node = single_user(way[-1], what)
        if node.op_type == until:
            return node, way
        if node.op_type not in LAYOUT_OPS:
            fail(f"{what} should go into {until}, not {node.op_type}", way[-1])
        way.append(node.outputs[0])


def nodes_of(way: list[ir.Value]) -> list[ir.Node]:
    """The layout operators on the way that `_follow_down` went."""
    return [value.producer() for value in way[1:]]  # type: ignore[misc]


def follow_up(value: ir.Value) -> Path:
    """Up through layout operators and scales."""
    path = Path(value, [])
    while True:
        path.source, chain = trace_layout(path.source)
        path.layout = chain + path.layout
        node = producer_of(path.source, "MUL", "DIV")
        factor = operand_and_factor(node) if node is not None else None
        if node is None or factor is None:
            return path
        check_no_activation(node)
        path.source, number = factor
        path.scale *= number


def find_cache_update(value: ir.Value, inner: Collection[ir.Graph]) -> tuple[CacheUpdate, ir.Value]:
    """The cache join that makes `value`, and the new keys or values that go in; none is fine."""
    node = producer_of(value, "CONCATENATION", "DYNAMIC_UPDATE_SLICE")
    if node is None:
        return CacheUpdate(), value
    check_no_activation(node)
    past, new = node.inputs[:2]
    if len(node.inputs) != (2 if node.op_type == "CONCATENATION" else 3) or past is None or new is None:
        fail("a cache joins more than the past and the new", value)
    past, way = trace_layout(past)
    if not past.is_graph_input():
        fail("the past of the cache is not a graph input", past)
    if past.graph in inner:
        fail("the cache belongs to a graph that an operator runs: nobody sees it written in place", past)
    for step in (past, *(node.outputs[0] for node in way)):
        single_user(step, "the cache, which ATTENTION writes in place,")
    return CacheUpdate(node, past, way), new


def find_rotated(value: ir.Value, what: str) -> tuple[Rotation | None, Projection]:
    if producer_of(value, "FULLY_CONNECTED") is not None:
        return None, find_projection(value, what)
    rotation = match_rope(value)
    source, _ = trace_layout(rotation.x)
    return rotation, find_projection(source, what)


def find_projection(value: ir.Value, what: str) -> Projection:
    node = require_producer(value, what, "FULLY_CONNECTED")
    check_no_activation(node)
    x, w, *bias = node.inputs
    if bias and bias[0] is not None:
        fail(f"the projection of {what} has a bias", bias[0])
    assert x is not None
    assert w is not None
    x = _unflattened(x)
    if len(shape_of(w)) != 2:
        fail(f"the weights of {what} are not a matrix (reshape.fc_weight.py makes them one)", w)
    if w.dtype != x.dtype or attribute(node, "weightsFormat", 0):
        fail(f"the weights of {what} are quantised or shuffled: do that after fusing", w)
    return Projection(node, x, w)


def _unflattened(x: ir.Value) -> ir.Value:
    """x before its rows were only counted differently ([1, T, D] as [T, D])."""
    source, chain = trace_layout(x)
    plain = all(node.op_type in RESHAPE_OPS for node in chain)
    return source if plain and shape_of(source)[-1:] == shape_of(x)[-1:] else x
