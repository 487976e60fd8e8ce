"""Window caches: KV caches with fewer rows than the text has positions, for layers with a window.

A query of a layer with a window sees W keys at most. So its cache needs the rows of the last positions only:

    full cache     S rows, row p holds position p
    window cache   R rows, row r holds position b + r; W - 1 + T <= R < S

The graph takes one more input, `window_row`: the row of the first token, p - b. It replaces the position
in two places: where DYNAMIC_UPDATE_SLICE writes, and in `o2o.attention`, whose window counts rows. Rotary
embeddings keep the position. The caller chooses b. Where a run needs a row beyond R, it first moves the
last rows to the front.

This is no ring, where position p is in row p modulo R. Rows are in the order of the positions. So no
write wraps around the end, where DYNAMIC_UPDATE_SLICE would write elsewhere. Padded rows are overwritten as
in a full cache. Masks and ALiBi's distances stay as they are. The price is that W rows move now and then.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from o2o.contract import Role, Slot, role_of
from o2o.formats.tensors import is_constant, is_quantized
from o2o.model import Model, Signature, is_dynamic, shape_of
from o2o.operators.core_attention import CoreAttention, is_core_attention
from o2o.rewriting.attention.causality import AtPosition, position_leaf
from o2o.rewriting.builder import fresh_name
from o2o.rewriting.matchers import constant_ints, fail
from o2o.signatures import capacity_of

SLACK = 512
"""Default rows beyond the window: moving rows is rare, and a session can go back by some of them."""
INPUT = "window_row"
"""The name of the input, and its role."""


@dataclass(frozen=True)
class WindowLayers:
    """What the layers with a window have in common.

    Attributes:
        layers: Their numbers.
        window: W, the largest of their windows.
        tokens: T, the most tokens that a signature with KV caches reads.
        capacity: S.
    """

    layers: list[int]
    window: int
    tokens: int
    capacity: int

    @property
    def smallest(self) -> int:
        """The smallest number of rows that is enough for each run."""
        return self.window - 1 + self.tokens

    @property
    def default_rows(self) -> int:
        """The default of R."""
        return default_rows(self.window, self.tokens)

    @property
    def pays(self) -> bool:
        """Whether window caches of the default size are much smaller than full caches."""
        return 2 * self.default_rows <= self.capacity


def default_rows(window: int, tokens: int) -> int:
    """Return the default number of rows. Half of the rows beyond the window hold a run.

    Args:
        window: W.
        tokens: T, the most tokens that a run reads.

    Returns:
        R.
    """
    return window + max(2 * tokens, min(window, SLACK))


def window_layers(model: Model) -> WindowLayers | None:
    """Find the layers whose attention has a window, in all signatures with KV caches.

    Args:
        model: A model with roles attached (`o2o.contract`).

    Returns:
        The layers; None if no layer has a full cache and a window.

    Raises:
        MatchFailure: Signatures differ in these layers.
    """
    by_signature = {
        signature.name: caches for signature in model.signatures if (caches := _window_caches(signature))
    }
    if not by_signature:
        return None
    slots = {name: {cache.slot for cache in caches} for name, caches in by_signature.items()}
    first = next(iter(slots))
    with_caches = [signature for signature in model.signatures if capacity_of(signature)]
    for signature in with_caches:
        if slots.get(signature.name) != slots[first]:
            fail(f"{signature.name} and {first} have windows in different layers")
    roles = [
        (signature, value, role)
        for signature in with_caches
        for value in signature.inputs.values()
        if (role := role_of(value)) is not None
    ]
    return WindowLayers(
        sorted({layer for _, layer in slots[first]}),
        max(cache.window for caches in by_signature.values() for cache in caches),
        max((math.prod(shape_of(value)) for _, value, role in roles if role.kind == "tokens"), default=1),
        max(map(capacity_of, with_caches)),
    )


def shrink_window_caches(model: Model, rows: int) -> None:
    """Cut the caches of layers with a window to `rows` rows, in place.

    Args:
        model: A model with roles attached, of which `window_layers` gives layers.
        rows: R, at least `WindowLayers.smallest`.

    Raises:
        MatchFailure: A graph cannot be proven to write and read its caches at the position.
    """
    for graph in dict.fromkeys(signature.graph for signature in model.signatures):
        signatures = list(model.signatures_of(graph))
        caches = [cache for cache in _window_caches(signatures[0]) if cache.capacity > rows]
        if not caches:
            continue
        position = _position(signatures[0])
        for value in dict.fromkeys(value for cache in caches for value in cache.row_operands):
            _prove_position(value, position, caches)
        row = _add_input(graph, signatures, position)
        copies = {position: row}
        for cache in caches:
            cache.update.replace_input_with(2, _recomputed(cache.start, graph, copies))
            for node in cache.attentions:
                at = node.inputs[3]
                assert at is not None
                node.replace_input_with(3, _recomputed(at, graph, copies))
            cache.shrink(rows)


@dataclass(frozen=True)
class _WindowCache:
    """A full cache that only attention with a window reads.

    Attributes:
        value: The input.
        role: Its role, with a layer and a layout.
        update: The DYNAMIC_UPDATE_SLICE that writes it.
        tensors: The tensors with its rows, and the axis of these.
        attentions: `o2o.attention` that read it.
    """

    value: ir.Value
    role: Role
    update: ir.Node
    tensors: dict[ir.Value, int]
    attentions: list[ir.Node]

    @property
    def slot(self) -> Slot:
        return self.role.slot

    @property
    def window(self) -> int:
        return max(CoreAttention.of(node).window for node in self.attentions)

    @property
    def capacity(self) -> int:
        return shape_of(self.value)[self.tensors[self.value]]

    @property
    def start(self) -> ir.Value:
        start = self.update.inputs[2]
        assert start is not None
        return start

    @property
    def row_operands(self) -> Iterator[ir.Value]:
        """The operands that are the position: (where rows are written, and the first query's row)."""
        yield self.start
        yield from (CoreAttention.of(node).position for node in self.attentions)

    def shrink(self, rows: int) -> None:
        capacity = self.capacity
        for value, axis in self.tensors.items():
            shape = list(shape_of(value))
            shape[axis] = rows
            value.shape = ir.Shape(shape)
            if (role := role_of(value)) is not None:
                value.meta["role"] = replace(role, window=role.window or self.window, capacity=capacity)


def _window_caches(signature: Signature) -> list[_WindowCache]:
    """The full caches that only attention with a window reads."""
    caches = []
    for value in signature.graph.inputs:
        role = role_of(value)
        if role is not None and role.is_cache and role.layout is not None and role.capacity is None:
            cache = _window_cache(value, role)
            caches += [cache] if cache is not None else []
    return caches


def _window_cache(value: ir.Value, role: Role) -> _WindowCache | None:
    """The cache, if attention with a window, and nothing else, reads it; None for others, which stay full."""
    assert role.layout is not None
    updates = [use.node for use in value.uses()]
    if len(updates) != 1 or updates[0].op_type != "DYNAMIC_UPDATE_SLICE" or updates[0].inputs[0] is not value:
        return None
    tensors = {value: role.layout.index("T")}
    attentions: list[ir.Node] = []
    pending = [(updates[0].outputs[0], tensors[value])]
    while pending:
        rows, axis = pending.pop()
        tensors[rows] = axis
        for node, operand in rows.uses():
            order = constant_ints(node.inputs[1]) if node.op_type == "TRANSPOSE" else None
            if order is not None and operand == 0:
                pending.append((node.outputs[0], list(order).index(axis)))
            elif is_core_attention(node) and operand in (1, 2) and axis == 2:
                attentions.append(node)
            else:
                return None
    windows = [CoreAttention.of(node).window for node in attentions]
    if not windows or not all(windows):
        return None
    if any(is_dynamic(tensor) or is_quantized(tensor) for tensor in tensors):
        return None
    if any(CoreAttention.of(node).mask is not None for node in attentions):
        return None
    return _WindowCache(value, role, updates[0], tensors, attentions)


def _position(signature: Signature) -> ir.Value:
    """The input of the role `position`. MatchFailure unless it is one number."""
    roles = ((value, role_of(value)) for value in signature.inputs.values())
    positions = [value for value, role in roles if role is not None and role.kind == "position"]
    if len(positions) != 1 or math.prod(shape_of(positions[0])) != 1:
        fail(f"{signature.name} does not take the position of its first token as one number")
    return positions[0]


def _prove_position(value: ir.Value, position: ir.Value, caches: Sequence[_WindowCache]) -> None:
    """MatchFailure unless `value` is the position: alone, or on the token axis of a start, 0 on others."""
    what = "the row that is written or read"
    if position_leaf(value, what) is not position:
        fail(f"{what} does not follow the input {position.name}", value)
    axes = {cache.tensors[cache.value] for cache in caches if cache.start is value}
    capacity = min(cache.capacity for cache in caches)
    at = AtPosition(value, position, what)
    for number in _samples(capacity):
        numbers = at(number).reshape(-1).tolist()
        wanted = [[number if axis == index else 0 for index in range(len(numbers))] for axis in axes or {0}]
        if any(numbers != one for one in wanted):
            fail(f"{what} is {numbers} at position {number}", value)


def _samples(capacity: int) -> list[int]:
    """Positions of a proof: all if there are few, else the first, the last, and every 61st."""
    last = capacity - 1
    return list(range(capacity)) if last < 4096 else sorted({*range(0, capacity, 61), *range(256), last})


def _add_input(graph: ir.Graph, signatures: Sequence[Signature], position: ir.Value) -> ir.Value:
    """Add the input `window_row` behind `position`, of its shape and dtype."""
    row = ir.Value(name=fresh_name(graph, INPUT), shape=position.shape, type=position.type)
    row.meta["role"] = Role("window_row")
    inputs = list(graph.inputs)
    inputs.insert(inputs.index(position) + 1, row)
    graph.inputs[:] = inputs
    for signature in signatures:
        named: dict[str, ir.Value] = {}
        for name, value in signature.inputs.items():
            named[name] = value
            if value is position:
                named[INPUT] = row
        signature.inputs = named
    return row


def _recomputed(value: ir.Value, graph: ir.Graph, copies: dict[ir.Value, ir.Value]) -> ir.Value:
    """`value` computed by copies of its nodes from the replaced values of `copies`."""
    if value in copies:
        return copies[value]
    node = value.producer()
    if node is None or is_constant(value):
        return value
    operands = [None if one is None else _recomputed(one, graph, copies) for one in node.inputs]
    if all(new is old for new, old in zip(operands, node.inputs, strict=True)):
        return value
    outputs = [
        ir.Value(name=fresh_name(graph, f"{INPUT}/{one.name}"), shape=one.shape, type=one.type)
        for one in node.outputs
    ]
    attributes = list(node.attributes.values())
    copied = ir.Node(node.domain, node.op_type, operands, attributes, outputs=outputs, version=node.version)
    copied.meta.update(node.meta)
    graph.insert_after(node, copied)
    copies.update(zip(node.outputs, outputs, strict=True))
    return copies[value]
