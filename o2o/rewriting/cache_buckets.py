"""Cache buckets: copies of a decode graph whose KV caches have a smaller capacity.

A decode step computes with all S rows of its caches, written or not. At a position below a smaller capacity,
the mask hides all rows beyond that capacity. A graph over fewer rows gives the same result, faster. This
module proves that at every position. To find the axes to shorten, it follows the cache rows through the
graph: forward to their users, and backward to masks. A window cache (`o2o.rewriting.window_caches`) stays as
it is in a bucket that has more positions than the cache has rows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from o2o.contract import role_of
from o2o.formats.tensors import constant_array, is_constant, is_quantized
from o2o.model import (
    DOMAIN,
    Model,
    Signature,
    attribute,
    is_dynamic,
    shape_of,
)
from o2o.operators.attention import Attention, is_attention
from o2o.operators.core_attention import is_core_attention
from o2o.operators.masks import HIDDEN_THRESHOLD
from o2o.operators.reference import unknown_sources
from o2o.operators.traits import RESHAPE_OPS, is_elementwise
from o2o.rewriting.attention.causality import BUDGET, AtPosition, position_leaf
from o2o.rewriting.builder import Builder
from o2o.rewriting.dead_code_elimination import remove_dead_constants, remove_dead_nodes
from o2o.rewriting.graph_copies import copied
from o2o.rewriting.matchers import constant_ints, fail, producer_of

SMALLEST_CAPACITY = 256
"""The smallest default bucket; `bench/decode_attention.py` measures what a step costs in each."""
Rows = dict[ir.Value, int]
"""For each value that holds cache rows, the axis of the rows."""


def add_cache_buckets(
    model: Model, signature: Signature, capacities: Sequence[int], causal: bool = False
) -> None:
    """Add a copy of `signature`, named `NAME_CAPACITY`, for each smaller capacity. All share their weights.

    Args:
        model: Gets the new graphs and signatures.
        signature: Its caches are [1, K, S, H] or [1, S, K, H], by their roles.
        capacities: Numbers of rows, each below `most_rows`.
        causal: Whether it is known that no query sees a row beyond its own position. If not, `signature`
            reads one token, and that is proven.

    Raises:
        MatchFailure: The graph cannot be proven to compute the same with fewer rows.
    """
    graph = signature.graph
    rows = follow_rows(graph)
    if not rows:
        fail(f"{signature.name} has no KV caches in its contract")
    if not causal:
        prove_hidden(graph, rows, capacities)
    for capacity in capacities:
        copy, copies = copied(graph)
        _shorten(copy, {copies[value]: axis for value, axis in rows.items()}, capacity)
        inputs, outputs = (
            {name: copies[value] for name, value in values.items()}
            for values in (signature.inputs, signature.outputs)
        )
        copy.name = f"{graph.name or signature.name}_{capacity}"
        model.graphs.append(copy)
        model.signatures.append(Signature(f"{signature.name}_{capacity}", copy, inputs, outputs))


def is_provable(capacity: int, rows: int) -> bool:
    """Whether the proof that `capacity` of `rows` cache rows suffice takes at most about a second.

    Args:
        capacity: The smaller number of rows.
        rows: The capacity S of the caches.

    Returns:
        True if a proof is affordable.
    """
    return capacity * rows <= BUDGET


def most_rows(signature: Signature) -> int:
    """Return the number of rows of the largest KV cache. Only buckets with fewer positions are smaller.

    Args:
        signature: Decode, with roles attached to its values.

    Returns:
        The rows; below the capacity S if all caches are window caches. 0 without caches of a known layout.
    """
    caches = ((value, role_of(value)) for value in signature.inputs.values())
    return max(
        (
            shape_of(value)[role.layout.index("T")]
            for value, role in caches
            if role is not None and role.is_cache and role.layout is not None
        ),
        default=0,
    )


def default_capacities(capacity: int) -> list[int]:
    """Return the default capacities of buckets.

    Args:
        capacity: `most_rows` of decode.

    Returns:
        256, 512, 768, 1024, 1536, 2048, ... below S, as far as `is_provable` allows. From 512 rows on, a step
        computes with at most one and a half times the rows that are filled.
    """
    doubled = (SMALLEST_CAPACITY << power for power in itertools.count(1))
    larger = (rows for double in doubled for rows in (double, double + double // 2))
    return list(
        itertools.takewhile(
            lambda rows: rows < capacity and is_provable(rows, capacity),
            itertools.chain([SMALLEST_CAPACITY], larger),
        )
    )


_ROWS_BY_POSITION = {
    "SOFTMAX": (None, "the mask"),
    "DYNAMIC_UPDATE_SLICE": (2, "the row that is written"),
    "SLICE": (1, "the first row of a window"),
}
"""{operator: the operand that decides its rows, None for the mask of its scores; what that is}"""


def follow_rows(graph: ir.Graph, is_cut: Callable[[ir.Value], bool] = lambda value: False) -> Rows:
    """Follow the cache rows through a graph.

    Args:
        graph: A graph of Circle operators.
        is_cut: Whether a value is cut by itself: what computes it, and its other users, are not followed.

    Returns:
        The values that hold cache rows, and the axis.

    Raises:
        MatchFailure: Rows stop being rows of one axis.
    """
    rows: Rows = {}
    pending: list[tuple[ir.Value, int]] = []
    for value in graph.inputs:
        role = role_of(value)
        if role is not None and role.is_cache and role.layout is not None:
            pending.append((value, role.layout.index("T")))
    caches = [value for value, _ in pending]
    while pending:
        value, axis = pending.pop()
        if rows.setdefault(value, axis) != axis:
            fail("two of its axes hold cache rows", value)
        if is_cut(value):
            continue
        node = value.producer()
        if node is None and not is_constant(value) and value not in caches:
            fail("cache rows are combined with an input that is not a cache", value)
        if is_dynamic(value) or is_quantized(value):
            fail("it is quantized, or has no fixed shape", value)
        nodes = (
            [use.node for use in value.uses()] if node is None else [node, *(u.node for u in value.uses())]
        )
        for touched in nodes:
            pending += [tied for tied in _tied_values(touched, value, axis) if tied[0] not in rows]
    for value in graph.outputs:
        role = role_of(value)
        if value in rows and (role is None or not role.is_rows):
            fail("an output that is not a cache has cache rows", value)
    return rows


def _tied_values(node: ir.Node, value: ir.Value, axis: int) -> Iterator[tuple[ir.Value, int]]:
    """The other operands and results of `node` with cache rows, given cache rows on `axis` of `value`."""
    output = node.outputs[0]
    operands = [operand for operand in node.inputs if operand is not None]
    if is_attention(node) and value in operands and Attention.of(node).mask is None:
        return  # it sees no row beyond its position
    if is_core_attention(node):
        if value not in (keys_and_values := operands[1:3]) or axis != 2:
            fail("the queries or the mask of an attention have cache rows", output)
        yield from ((operand, 2) for operand in keys_and_values)
        return
    if node.domain != DOMAIN or len(node.outputs) != 1:
        fail(f"{node.op_type} computes with cache rows", output)
    match node.op_type:
        case op_type if op_type == "SOFTMAX" or is_elementwise(node):
            if op_type == "SOFTMAX" and axis != len(shape_of(value)) - 1:
                fail("a SOFTMAX goes over another axis", output)
            behind = len(shape_of(value)) - axis
            for other in (*operands, output):
                if len(shape := shape_of(other)) >= behind and shape[-behind] != 1:
                    yield other, len(shape) - behind
        case "BROADCAST_TO" if value in (operands[0], output):
            behind = len(shape_of(value)) - axis
            for other in (operands[0], output):
                if len(shape := shape_of(other)) >= behind and shape[-behind] != 1:
                    yield other, len(shape) - behind
        case "TRANSPOSE":
            order = constant_ints(node.inputs[1])
            if order is None or value is node.inputs[1]:
                fail("a TRANSPOSE whose permutation is not constant", output)
            yield (output, list(order).index(axis)) if value is operands[0] else (operands[0], order[axis])
        case op_type if op_type in RESHAPE_OPS:
            if value is not output and value is not operands[0]:
                fail("a shape is computed from cache rows", output)
            other = operands[0] if value is output else output
            yield other, _regrouped(shape_of(value), axis, other)
        case "DYNAMIC_UPDATE_SLICE":
            cache, update, start = operands
            if value in (update, start):
                fail("cache rows are written into another tensor", output)
            yield from ((cache, axis), (output, axis))
        case "SLICE" if value in (operands[0], output):
            others = ([*sizes[:axis], *sizes[axis + 1 :]] for sizes in map(shape_of, (operands[0], output)))
            if next(others) != next(others):
                fail("a SLICE of another axis", output)
            yield from ((operands[0], axis), (output, axis))
        case "BATCH_MATMUL":
            yield from _product(node, value, axis)
        case _:
            fail(f"{node.op_type} computes with cache rows", output)


def _regrouped(shape: Sequence[int], axis: int, other: ir.Value) -> int:
    """The axis of `other`, a reshape of a tensor of shape `shape`, that is `axis` of that tensor."""
    before = math.prod(shape[:axis])
    to = shape_of(other)
    for index, size in enumerate(to):
        if size == shape[axis] and math.prod(to[:index]) == before:
            return index
    fail("a reshape merges the cache rows with another axis", other)


def _product(node: ir.Node, value: ir.Value, axis: int) -> Iterator[tuple[ir.Value, int]]:
    """`_tied_values` of a BATCH_MATMUL. A sum over rows must have softmax weights: 0 for hidden rows."""
    left, right = node.inputs[:2]
    output = node.outputs[0]
    assert left is not None
    assert right is not None
    rank = len(shape_of(output))
    if left is right or len(shape_of(left)) != rank or len(shape_of(right)) != rank or axis < rank - 2:
        fail("a BATCH_MATMUL uses cache rows in a way that attention does not", output)
    m, inner_left = (rank - 1, rank - 2) if attribute(node, "adjointLhs", 0) else (rank - 2, rank - 1)
    inner_right, n = (rank - 1, rank - 2) if attribute(node, "adjointRhs", 0) else (rank - 2, rank - 1)
    groups = [
        ((left, m), (output, rank - 2)),
        ((right, n), (output, rank - 1)),
        ((left, inner_left), (right, inner_right)),
    ]
    for group in groups:
        if (value, axis) in group:
            yield from group
            if group is groups[2] and not any(_is_softmax(factor) for factor, _ in group):
                fail("rows are summed without softmax weights", output)


def _is_softmax(value: ir.Value) -> bool:
    """Whether a value holds softmax weights, also where others than numbers become 0."""
    if (select := producer_of(_skip_layout(value), "SELECT", "SELECT_V2")) is not None:
        _, a, b = select.inputs
        rest = [each for each in (a, b) if each is not None and not _is_zero(each)]
        return len(rest) == 1 and _is_softmax(rest[0])
    return producer_of(_skip_layout(value), "SOFTMAX") is not None


def _is_zero(value: ir.Value) -> bool:
    array = constant_array(value)
    return array is not None and not array.any()


def _skip_layout(value: ir.Value) -> ir.Value:
    """`value` before transposes and reshapes."""
    while (node := producer_of(value, "TRANSPOSE", *RESHAPE_OPS)) is not None and node.inputs[0] is not None:
        value = node.inputs[0]
    return value


def prove_hidden(graph: ir.Graph, rows: Rows, capacities: Sequence[int]) -> None:
    """Prove that at each position below a capacity no row beyond it is seen or written.

    Args:
        graph: The graph.
        rows: From `follow_rows`.
        capacities: Numbers of rows.

    Raises:
        MatchFailure: A row is, or this cannot be proven.
    """
    proven: set[ir.Value] = set()
    most = max(capacities, default=0)
    for value, axis in rows.items():
        if value.is_graph_input() and not is_provable(most, shape_of(value)[axis]):
            fail(f"the masks are too large for a proof at {most:,} positions", value)
    for node in graph:
        output = node.outputs[0]
        if output not in rows or node.op_type not in _ROWS_BY_POSITION:
            continue
        operand, what = _ROWS_BY_POSITION[node.op_type]
        mask_or_start = _mask(node, rows) if operand is None else node.inputs[operand]
        size = shape_of(output)[rows[output]] if node.op_type == "SLICE" else 1
        rows_of = node.inputs[0] if node.op_type == "SLICE" else output
        assert rows_of is not None
        whole = shape_of(rows_of)[rows[rows_of]]  # a window cache may have fewer rows than a bucket
        assert mask_or_start is not None
        if mask_or_start in proven:
            continue
        leaf = position_leaf(mask_or_start, what)
        if leaf is None:
            fail(f"{what} is the same at every position", mask_or_start)
        numbers_at = AtPosition(mask_or_start, leaf, what)
        last = np.empty(most, int)  # the last row that is seen, or the first of `size`, at each position
        for position in range(len(last)):
            numbers_ = numbers_at(position)
            if node.op_type == "SOFTMAX":
                seen = np.flatnonzero(numbers_.reshape(-1, numbers_.shape[-1]).max(0) > HIDDEN_THRESHOLD)
                last[position] = seen[-1] if len(seen) else 0
            else:
                last[position] = numbers_[rows[output]]
        for capacity in capacities:
            if capacity < whole and last[:capacity].max() + min(size, capacity) > capacity:
                fail(
                    f"{what} goes beyond {capacity} rows at a position below {capacity}",
                    mask_or_start,
                )
        proven.add(mask_or_start)


def _mask(node: ir.Node, rows: Rows) -> ir.Value:
    """The mask that is added to the operand of `node`, a SOFTMAX. MatchFailure if there is none."""
    scores = node.inputs[0]
    assert scores is not None
    add = producer_of(_skip_layout(scores), "ADD")
    for mask in add.inputs if add is not None else ():
        if mask is not None and mask in rows and not any(_is_cache(leaf) for leaf in unknown_sources(mask)):
            return mask
    fail("no mask is added to scores", scores)


def _is_cache(value: ir.Value) -> bool:
    role = role_of(value)
    return role is not None and role.is_cache


def _shorten(graph: ir.Graph, rows: Rows, capacity: int) -> None:
    """Cut the row axis of each value of `rows` to `capacity` at most."""
    for value, axis in rows.items():
        shape = list(shape_of(value))
        if (role := role_of(value)) is not None and role.capacity is not None:
            value.meta["role"] = replace(role, capacity=capacity if shape[axis] < capacity else None)
        shape[axis] = min(shape[axis], capacity)  # a window, or a window cache, has fewer rows
        value.shape = ir.Shape(shape)
        if (array := constant_array(value)) is not None:
            first = array.take(range(shape[axis]), axis)
            value.const_value = ir.Tensor(np.ascontiguousarray(first), name=value.name)
    for value in rows:
        if (node := producer_of(value, "RESHAPE")) is not None:
            op = Builder(graph, before=node)
            node.replace_input_with(1, op.constant(shape_of(value), f"{value.name}/shape", np.int32))
            node.attributes["newShape"] = ir.AttrInt64s("newShape", list(shape_of(value)))
        elif (node := producer_of(value, "SLICE")) is not None:
            whole = node.inputs[0]
            assert whole is not None
            if shape_of(whole) == shape_of(value) and not value.is_graph_output():
                value.replace_all_uses_with(whole)
                continue
            op = Builder(graph, before=node)
            node.replace_input_with(2, op.constant(shape_of(value), f"{value.name}/size", np.int32))
    remove_dead_nodes(graph)
    remove_dead_constants(graph)
