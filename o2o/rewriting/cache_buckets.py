"""The same graph over caches of fewer rows.

A decode step computes with every row of its caches, written or not. Over shorter caches it gives the same,
faster, as long as the position is below their capacity S: rows from there on are hidden anyway. That they are
is proven, at every position. Which axes shrink is found by following the rows of the caches through the
graph, forwards through what is computed of them and backwards to the masks that they meet.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from o2o.contract import role_of
from o2o.formats.tensors import is_constant, is_quantized, numbers
from o2o.model import (
    CUSTOM_DOMAIN,
    DOMAIN,
    Model,
    Signature,
    attribute,
    is_dynamic,
    quantization_constants,
    shape_of,
)
from o2o.operators import causal_attention
from o2o.operators.attention import Attention, is_attention
from o2o.operators.facts import RESHAPE_OPS, is_elementwise
from o2o.operators.masks import HIDDEN_THRESHOLD
from o2o.operators.reference import unknown_sources
from o2o.rewriting.attention.causality import BUDGET, at_position, position_leaf
from o2o.rewriting.builder import Builder
from o2o.rewriting.dead_code_elimination import remove_dead_constants
from o2o.rewriting.matchers import constant_ints, fail, producer_of

Rows = dict[ir.Value, int]
"""The axis of each value on which the rows of the caches lie."""


def add_cache_buckets(model: Model, signature: Signature, capacities: Sequence[int]) -> None:
    """Give `model` a copy of `signature`, `NAME_CAPACITY`, for each of `capacities`, and all their weights in
    common.

    The signature reads one token and has caches of [1, K, S, H] or [1, S, K, H], told by their roles, and
    each of `capacities` is below S. Raises MatchFailure for one that computes something else with fewer rows.
    """
    graph = signature.graph
    rows = _follow(graph)
    if not rows:
        fail(f"{signature.name} has no caches that the contract tells")
    _prove_hidden(graph, rows, capacities)
    for capacity in capacities:
        copy, twins = _copied(graph)
        _shorten(copy, {twins[value]: axis for value, axis in rows.items()}, capacity)
        ins, outs = (
            {name: twins[value] for name, value in ends.items()}
            for ends in (signature.inputs, signature.outputs)
        )
        copy.name = f"{graph.name or signature.name}_{capacity}"
        model.graphs.append(copy)
        model.signatures.append(Signature(f"{signature.name}_{capacity}", copy, ins, outs))


def is_provable(capacity: int, own: int) -> bool:
    """Whether it can be proven, in a second or so, that `capacity` rows of `own` do."""
    return capacity * own <= BUDGET


def _follow(graph: ir.Graph) -> Rows:
    """Where the rows of the caches are. Raises MatchFailure where they become something else than rows."""
    rows: Rows = {}
    waiting: list[tuple[ir.Value, int]] = []
    for value in graph.inputs:
        role = role_of(value)
        if role is not None and role.kind.endswith("_cache") and role.layout is not None:
            waiting.append((value, role.layout.index("T")))
    caches = [value for value, _ in waiting]
    while waiting:
        value, axis = waiting.pop()
        if rows.setdefault(value, axis) != axis:
            fail("the caches' rows lie on two of its axes", value)
        node = value.producer()
        if node is None and not is_constant(value) and value not in caches:
            fail("the caches' rows meet an input that is no cache", value)
        if is_dynamic(value) or is_quantized(value):
            fail("it is quantised, or of no fixed shape", value)
        nodes = (
            [use.node for use in value.uses()] if node is None else [node, *(u.node for u in value.uses())]
        )
        for touched in nodes:
            waiting += [tie for tie in _ties(touched, value, axis) if tie[0] not in rows]
    for value in graph.outputs:
        role = role_of(value)
        if value in rows and (role is None or role.kind not in ("key", "value")):
            fail("the caches' rows come out elsewhere than in the caches", value)
    return rows


def _ties(node: ir.Node, value: ir.Value, axis: int) -> Iterator[tuple[ir.Value, int]]:
    """What else of `node` has the rows, given that this axis of `value`, of its operands or results, does."""
    output = node.outputs[0]
    operands = [operand for operand in node.inputs if operand is not None]
    if is_attention(node) and value in operands and Attention.of(node).mask is None:
        return  # which sees what is not beyond its position
    if node.domain == CUSTOM_DOMAIN and node.op_type == causal_attention.NAME:
        if value not in (keys_and_values := operands[1:3]) or axis != 2:
            fail("attention whose queries are the caches' rows", output)
        yield from ((operand, 2) for operand in keys_and_values)
        return
    if node.domain != DOMAIN or len(node.outputs) != 1:
        fail(f"{node.op_type} computes with the caches' rows", output)
    match node.op_type:
        case op_type if op_type == "SOFTMAX" or is_elementwise(node):
            if op_type == "SOFTMAX" and axis != len(shape_of(value)) - 1:
                fail("a SOFTMAX over another axis", output)
            behind = len(shape_of(value)) - axis
            for other in (*operands, output):
                if len(shape := shape_of(other)) >= behind and shape[-behind] != 1:
                    yield other, len(shape) - behind
        case "TRANSPOSE":
            order = constant_ints(node.inputs[1])
            if order is None or value is node.inputs[1]:
                fail("a TRANSPOSE whose permutation is not constant", output)
            yield (output, list(order).index(axis)) if value is operands[0] else (operands[0], order[axis])
        case op_type if op_type in RESHAPE_OPS:
            if value is not output and value is not operands[0]:
                fail("a shape made of the caches' rows", output)
            other = operands[0] if value is output else output
            yield other, _regrouped(shape_of(value), axis, other)
        case "DYNAMIC_UPDATE_SLICE":
            cache, update, start = operands
            if value in (update, start):
                fail("the caches' rows are written into something", output)
            yield from ((cache, axis), (output, axis))
        case "BATCH_MATMUL":
            yield from _product(node, value, axis)
        case _:
            fail(f"{node.op_type} computes with the caches' rows", output)


def _regrouped(shape: Sequence[int], axis: int, other: ir.Value) -> int:
    """The axis of `other`, the same numbers in the same order, on which lies that axis of `shape`."""
    before = math.prod(shape[:axis])
    to = shape_of(other)
    for index, size in enumerate(to):
        if size == shape[axis] and math.prod(to[:index]) == before:
            return index
    fail("the caches' rows are joined with another axis", other)


def _product(node: ir.Node, value: ir.Value, axis: int) -> Iterator[tuple[ir.Value, int]]:
    """`_ties` of a BATCH_MATMUL. What it sums over rows must be weights, 0 where rows are hidden."""
    left, right = node.inputs[:2]
    output = node.outputs[0]
    assert left is not None
    assert right is not None
    rank = len(shape_of(output))
    if left is right or len(shape_of(left)) != rank or len(shape_of(right)) != rank or axis < rank - 2:
        fail("a BATCH_MATMUL of another kind with the caches' rows", output)
    turned = bool(attribute(node, "adjointLhs", 0)), bool(attribute(node, "adjointRhs", 0))
    m, inner_left = (rank - 1, rank - 2) if turned[0] else (rank - 2, rank - 1)
    inner_right, n = (rank - 1, rank - 2) if turned[1] else (rank - 2, rank - 1)
    groups = [
        ((left, m), (output, rank - 2)),
        ((right, n), (output, rank - 1)),
        ((left, inner_left), (right, inner_right)),
    ]
    for group in groups:
        if (value, axis) in group:
            yield from group
            if group is groups[2] and not any(_weighs(factor) for factor, _ in group):
                fail("rows are summed that no SOFTMAX has weighted", output)


def _weighs(value: ir.Value) -> bool:
    return producer_of(_laid_out(value), "SOFTMAX") is not None


def _laid_out(value: ir.Value) -> ir.Value:
    """What `value` is, maybe in another layout."""
    while (node := producer_of(value, "TRANSPOSE", *RESHAPE_OPS)) is not None and node.inputs[0] is not None:
        value = node.inputs[0]
    return value


def _prove_hidden(graph: ir.Graph, rows: Rows, capacities: Sequence[int]) -> None:
    """Fail unless at each position below a capacity what is beyond it is neither seen nor written."""
    proven: set[ir.Value] = set()
    most = max(capacities, default=0)
    for value, axis in rows.items():
        if value.is_graph_input() and not is_provable(most, shape_of(value)[axis]):
            fail(f"masks are too large to be proven at each of {most:,} positions", value)
    for node in graph:
        output = node.outputs[0]
        if output not in rows or node.op_type not in ("SOFTMAX", "DYNAMIC_UPDATE_SLICE"):
            continue
        told = _mask(node, rows) if node.op_type == "SOFTMAX" else node.inputs[2]
        assert told is not None
        if told in proven:
            continue
        what = "the mask" if node.op_type == "SOFTMAX" else "the row that is written"
        leaf = position_leaf(told, what)
        if leaf is None:
            fail(f"{what} is the same at every position", told)
        last = np.empty(most, int)  # that is seen, or written, at each position
        for position in range(len(last)):
            at = at_position(told, leaf, position, what)
            if node.op_type == "SOFTMAX":
                seen = np.flatnonzero(at.reshape(-1, at.shape[-1]).max(0) > HIDDEN_THRESHOLD)
                last[position] = seen[-1] if len(seen) else 0
            else:
                last[position] = at[rows[output]]
        for capacity in capacities:
            if last[:capacity].max() >= capacity:
                fail(f"{what} goes beyond {capacity} rows at a position below", told)
        proven.add(told)


def _mask(node: ir.Node, rows: Rows) -> ir.Value:
    """What is added to the scores that `node`, a SOFTMAX, takes. Raises MatchFailure where nothing is."""
    scores = node.inputs[0]
    assert scores is not None
    adding = producer_of(_laid_out(scores), "ADD")
    for mask in adding.inputs if adding is not None else ():
        if mask is not None and mask in rows and not any(_is_cache(leaf) for leaf in unknown_sources(mask)):
            return mask
    fail("no mask is added to scores", scores)


def _is_cache(value: ir.Value) -> bool:
    role = role_of(value)
    return role is not None and role.kind.endswith("_cache")


def _copied(graph: ir.Graph) -> tuple[ir.Graph, dict[ir.Value, ir.Value]]:
    """A copy of `graph` over the same constants, and what became of each value."""
    copy = graph.clone()
    twins = dict(zip(graph.inputs, copy.inputs, strict=True))
    twins |= {value: copy.initializers[name] for name, value in graph.initializers.items()}
    for node, twin in zip(graph, copy, strict=True):
        twins |= dict(zip(node.outputs, twin.outputs, strict=True))
        twin.attributes.update(node.attributes)  # graphs that a node runs are no part of this one
    for new in twins.values():
        if constants := quantization_constants(new):
            new.meta["quantization_constants"] = {key: twins[value] for key, value in constants.items()}
    copy.meta.clear()
    if (fields := graph.meta.get("fields")) is not None:
        copy.meta["fields"] = fields
    return copy, twins


def _shorten(graph: ir.Graph, rows: Rows, capacity: int) -> None:
    """Leave `capacity` of the rows."""
    for value, axis in rows.items():
        shape = list(shape_of(value))
        shape[axis] = capacity
        value.shape = ir.Shape(shape)
        if (array := numbers(value)) is not None:
            first = array.take(range(capacity), axis)
            value.const_value = ir.Tensor(np.ascontiguousarray(first), name=value.name)
    for value in rows:
        if (node := producer_of(value, "RESHAPE")) is not None:
            op = Builder(graph, before=node)
            node.replace_input_with(1, op.constant(shape_of(value), f"{value.name}/shape", np.int32))
            node.attributes["newShape"] = ir.AttrInt64s("newShape", list(shape_of(value)))
    remove_dead_constants(graph)
