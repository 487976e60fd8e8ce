"""The parts of an attention block: up from its softmax to q k', and down to its result.

This module checks operators and operands only. `proof` checks axes, `visibility` masks and positions.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import onnx_ir as ir

from o2o.contract import Layout
from o2o.model import attribute, shape_of
from o2o.operators.traits import LAYOUT_OPS, RESHAPE_OPS
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
class LayoutPath:
    """The path from a source to a value: layout operators in order, and the product of all scales."""

    source: ir.Value
    layout: list[ir.Node]
    scale: float = 1.0


@dataclass
class Scores:
    """The path from q k' to the softmax: layout operators, one scale, at most one mask.

    Attributes:
        matmul: The product q k'.
        steps: The nodes after it, in order, with the one that adds the mask.
        scale: The product of all scales.
        mask: The mask, if there is one.
        masked_by: The node that adds it.
    """

    matmul: ir.Node
    steps: list[ir.Node] = field(default_factory=list)
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
    """The update of a key or value cache with new rows. All fields have their defaults without a cache.

    Attributes:
        node: The CONCATENATION or DYNAMIC_UPDATE_SLICE.
        past: The cache, a graph input.
        path: The layout operators between `past` and `node`.
        axis: The token axis at `node`.
        layout: The layout of `past`.
        cache_outputs: Outputs of the graph that are the updated cache.
    """

    node: ir.Node | None = None
    past: ir.Value | None = None
    path: list[ir.Node] = field(default_factory=list)
    axis: int = 2
    layout: Layout | None = None
    cache_outputs: list[ir.Value] = field(default_factory=list)


def find_scores(softmax: ir.Node) -> Scores:
    """Follow the operand of a softmax up to q k'.

    Args:
        softmax: The SOFTMAX.

    Returns:
        The path from q k' to it.

    Raises:
        MatchFailure: Other operators stand between them.
    """
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
        if node.op_type in ("MUL", "DIV") and (product := operand_and_factor(node)) is not None:
            value, factor = product
            scale *= factor
            continue
        if node.op_type in ("ADD", "SELECT", "SELECT_V2"):
            if scale != 1.0 and not masks:
                fail("the scale is applied to the mask too", node.outputs[0])
            value, mask = _scores_and_mask(node)
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
    scores = Scores(node, steps[::-1], scale * beta)
    if masks:
        scores.mask, scores.masked_by = masks[0]
    return scores


def _scores_and_mask(node: ir.Node) -> tuple[ir.Value, ir.Value]:
    """The operands of the node that adds the mask: the scores, which lead to q k', and the mask."""
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
        product = operand_and_factor(node) if node.op_type in ("MUL", "DIV") else None
        value = product[0] if product is not None else node.inputs[0]  # type: ignore[assignment]
    return producer_of(value, "BATCH_MATMUL") is not None


def follow_down(value: ir.Value, what: str, until: str) -> tuple[ir.Node, list[ir.Value]]:
    """Follow `value` down through layout operators.

    Args:
        value: Where to start.
        what: What `value` is, for the message.
        until: The operator at which to stop.

    Returns:
        The node `until`, and the values from `value` to its operand.

    Raises:
        MatchFailure: A value on the path has another user.
    """
    path = [value]
    while True:
        node = single_user(path[-1], what)
        if node.op_type == until:
            return node, path
        if node.op_type not in LAYOUT_OPS:
            fail(f"{what} should go into {until}, not {node.op_type}", path[-1])
        path.append(node.outputs[0])


def nodes_of(path: list[ir.Value]) -> list[ir.Node]:
    """Return the layout operators on a path.

    Args:
        path: The values that `follow_down` returns.

    Returns:
        The producers of all but the first.
    """
    return [value.producer() for value in path[1:]]  # type: ignore[misc]


def follow_up(value: ir.Value) -> LayoutPath:
    """Follow `value` up through layout operators and scales.

    Args:
        value: Where to start.

    Returns:
        The path from the source.
    """
    path = LayoutPath(value, [])
    while True:
        path.source, nodes = trace_layout(path.source)
        path.layout = nodes + path.layout
        node = producer_of(path.source, "MUL", "DIV")
        product = operand_and_factor(node) if node is not None else None
        if node is None or product is None:
            return path
        check_no_activation(node)
        path.source, factor = product
        path.scale *= factor


def find_cache_update(value: ir.Value, inner: Collection[ir.Graph]) -> tuple[CacheUpdate, ir.Value]:
    """Find the cache update that computes keys or values.

    Args:
        value: Keys or values as the products use them.
        inner: Graphs that operators run.

    Returns:
        The update, empty without a cache, and the new keys or values.

    Raises:
        MatchFailure: ATTENTION cannot write this cache in place.
    """
    node = producer_of(value, "CONCATENATION", "DYNAMIC_UPDATE_SLICE")
    if node is None:
        return CacheUpdate(), value
    check_no_activation(node)
    past, new = node.inputs[:2]
    if len(node.inputs) != (2 if node.op_type == "CONCATENATION" else 3) or past is None or new is None:
        fail("the concatenation has more operands than the cache and the new rows", value)
    past, path = trace_layout(past)
    if not past.is_graph_input():
        fail("the past of the cache is not a graph input", past)
    if past.graph in inner:
        fail("the cache belongs to a graph that an operator runs: writes in place would be lost", past)
    for step in (past, *(node.outputs[0] for node in path)):
        single_user(step, "the cache, which ATTENTION writes in place,")
    return CacheUpdate(node, past, path), new


def find_rotated(value: ir.Value, what: str) -> tuple[Rotation | None, Projection]:
    """Find the rotation and the projection of q or k.

    Args:
        value: q, or new k.
        what: `q` or `k`, for the message.

    Returns:
        The rotation, None without one, and the projection.
    """
    if producer_of(value, "FULLY_CONNECTED") is not None:
        return None, find_projection(value, what)
    rotation = match_rope(value)
    source, _ = trace_layout(rotation.x)
    return rotation, find_projection(source, what)


def find_projection(value: ir.Value, what: str) -> Projection:
    """Find the projection that computes `value`.

    Args:
        value: The result of a FULLY_CONNECTED.
        what: `q`, `k`, `v` or `the output`, for the message.

    Returns:
        The projection.

    Raises:
        MatchFailure: It has a bias or an activation, or its weights are no float matrix.
    """
    node = require_producer(value, what, "FULLY_CONNECTED")
    check_no_activation(node)
    x, w, *bias = node.inputs
    if bias and bias[0] is not None:
        fail(f"the projection of {what} has a bias", bias[0])
    assert x is not None
    assert w is not None
    x = _unflattened(x)
    if len(shape_of(w)) != 2:
        fail(f"the weights of {what} are not a matrix (run reshape.fc_weight.py first)", w)
    if w.dtype != x.dtype or attribute(node, "weightsFormat", 0):
        fail(f"the weights of {what} are quantized or shuffled (fuse before quantizing)", w)
    return Projection(node, x, w)


def _unflattened(x: ir.Value) -> ir.Value:
    """x before a reshape that keeps its last axis ([1, T, D] to [T, D])."""
    source, nodes = trace_layout(x)
    plain = all(node.op_type in RESHAPE_OPS for node in nodes)
    return source if plain and shape_of(source)[-1:] == shape_of(x)[-1:] else x
