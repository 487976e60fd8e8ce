"""The parts of an attention block around its core: projections, rotations, cache updates.

This module checks operators and operands only. `proof` checks axes, `visibility` masks and positions.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import onnx_ir as ir

from o2o.contract import Layout
from o2o.model import attribute, shape_of
from o2o.operators.traits import RESHAPE_OPS
from o2o.rewriting.axes import trace_layout
from o2o.rewriting.matchers import (
    MatchFailure,
    check_no_activation,
    fail,
    operand_and_factor,
    producer_of,
    single_user,
)
from o2o.rewriting.rope import Rotation, match_rope, rotates_neighbors


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

    Raises:
        MatchFailure: Something else precedes the attention, or a projection has a bias.
    """
    if producer_of(value, "ADD", "ROPE") is None:
        return None, find_projection(value, what)
    try:
        rotation = match_rope(value)
    except MatchFailure:
        if (node := producer_of(value, "ADD")) is not None and rotates_neighbors(node):
            fail(
                f"{what} is rotated by pairs of neighbors, for which Circle's ATTENTION has no operand", value
            )
        raise
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
    node = producer_of(value, "FULLY_CONNECTED")
    if node is None:
        fail(f"{_other_step(value, what)}, for which Circle's ATTENTION has no operand", value)
    check_no_activation(node)
    x, w, *bias = node.inputs
    if bias and bias[0] is not None:
        fail(f"the projection of {what} has a bias, for which Circle's ATTENTION has no operand", bias[0])
    assert x is not None
    assert w is not None
    x = _unflattened(x)
    if len(shape_of(w)) != 2:
        fail(f"the weights of {what} are not a matrix (run reshape.fc_weight.py first)", w)
    if w.dtype != x.dtype or attribute(node, "weightsFormat", 0):
        fail(f"the weights of {what} are quantized or shuffled (fuse before quantizing)", w)
    return Projection(node, x, w)


def _other_step(value: ir.Value, what: str) -> str:
    """What stands between a projection and the attention, in words."""
    node = value.producer()
    if node is None:
        return f"{what} is a graph input or constant"
    steps = [node, *(v.producer() for v in node.inputs if v is not None)]
    operators = {step.op_type for step in steps if step is not None}
    if operators & {"RMS_NORM", "RSQRT", "SQRT"} or _is_normalized(node):
        return f"{what} is normalized"
    if node.op_type == "CONCATENATION":
        return f"only a part of each head of {what} is rotated"
    if node.op_type in ("SPLIT", "SPLIT_V", "SLICE", "STRIDED_SLICE", "GATHER"):
        return f"{what} is a part of one projection for q, k and v"
    if node.op_type in ("MUL", "DIV") and operand_and_factor(node) is not None:
        return f"{what} is scaled between its projection and the attention"
    return f"{what} is computed by {node.op_type}"


def _is_normalized(node: ir.Node) -> bool:
    """Whether `node` multiplies (x * inverse root) by a weight."""
    factors = (producer_of(value, "MUL", "DIV") for value in node.inputs)
    roots = (root for factor in factors if factor is not None for root in factor.inputs)
    return node.op_type in ("MUL", "ADD") and any(producer_of(root, "RSQRT", "SQRT") for root in roots)


def _unflattened(x: ir.Value) -> ir.Value:
    """x before a reshape that keeps its last axis ([1, T, D] to [T, D])."""
    source, nodes = trace_layout(x)
    plain = all(node.op_type in RESHAPE_OPS for node in nodes)
    return source if plain and shape_of(source)[-1:] == shape_of(x)[-1:] else x
