"""Attention of a decode graph, whichever way it is spelled there, as one `Attend`.

ATTENTION with caches; or `o2o.causal_attention` behind a DYNAMIC_UPDATE_SLICE for each of its caches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from o2o.contract import role_of
from o2o.errors import ModelError
from o2o.lower.onnx.builder import FLOAT
from o2o.lower.onnx.operators import constant_vector, mixes_token
from o2o.lower.onnx.per_token import Tokens
from o2o.lower.onnx.standard_form import Attend, Cache, Heads, Projected, Standard, Tables
from o2o.lower.onnx.weights import Matrix, matrix_of
from o2o.model import attribute, shape_of
from o2o.operators import causal_attention
from o2o.operators.attention import Attention
from o2o.rewriting.attention.causality import Keys, prove_start
from o2o.rewriting.axes import trace_layout
from o2o.rewriting.matchers import MatchFailure, constant_ints, producer_of


class Caches:
    """Those of a decode graph, by its inputs; each is written once. written: the new rows of each by what
    DYNAMIC_UPDATE_SLICE makes of it."""

    def __init__(self, tokens: Tokens) -> None:
        """Raises ModelError for a graph without caches, or whose roles do not say enough."""
        self.tokens = tokens
        self.by_input: dict[ir.Value, Cache] = {}
        self.written: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
        self._done: set[ir.Value] = set()
        for value in sorted(tokens.graph.inputs, key=_order):
            role = role_of(value)
            if role is None or role.kind not in ("key_cache", "value_cache"):
                continue
            if role.layout is None or role.layer is None or len(shape_of(value)) != 4 or value.dtype != FLOAT:
                raise ModelError(f"the contract of {value.name} tells no layer and layout of a float32 cache")
            shape = shape_of(value)
            batch, K, rows, H = (shape[role.layout.index(axis)] for axis in "BNTH")
            if (batch, rows) != (1, tokens.capacity):
                raise ModelError(f"{value.name} {list(shape)} is no cache of {tokens.capacity} tokens")
            kind = role.kind.removesuffix("_cache")
            names = (f"{when}_{kind}_{role.layer}" for when in ("past", "present"))
            past, present = (tokens.op.value(name, FLOAT, [1, K, rows, H]) for name in names)
            self.by_input[value] = Cache(past, present, role.layout)

    def take(self, value: ir.Value, node: ir.Node) -> Cache:
        """The cache that `node` writes, which nothing has written yet. Raises ModelError."""
        if value not in self.by_input:
            raise self.tokens.refuse(node, f"it writes {value.name}, which the contract calls no cache")
        if value in self._done:
            raise self.tokens.refuse(node, f"{value.name} is written twice")
        self._done.add(value)
        return self.by_input[value]

    def update(self, node: ir.Node) -> None:
        """DYNAMIC_UPDATE_SLICE of the token's row into a cache. Raises ModelError for any other."""
        cache, new, start = node.inputs
        assert cache is not None
        assert new is not None
        assert start is not None
        known = self.by_input.get(cache)
        if known is None:
            raise self.tokens.refuse(node, f"it updates {cache.name}, which the contract calls no cache")
        axis = known.layout.index("T")
        shape = shape_of(cache)
        if shape_of(new) != (*shape[:axis], 1, *shape[axis + 1 :]):
            raise self.tokens.refuse(node, "it writes other than one token's row")
        try:
            leaf = prove_start(start, Keys(1, self.tokens.capacity, appended=False), axis)
        except MatchFailure as reason:
            raise self.tokens.refuse(node, str(reason)) from reason
        if leaf is not self.tokens.position_input:
            raise self.tokens.refuse(node, f"it writes where {leaf.name} says, which is not the position")
        self.written[node.outputs[0]] = cache, new

    def left(self) -> list[str]:
        """The caches that nothing has written."""
        return [value.name or "" for value in self.by_input if value not in self._done]

    def ends(self) -> tuple[list[ir.Value], list[ir.Value]]:
        """The inputs and the outputs that they are: key 0, value 0, key 1, ..."""
        caches = list(self.by_input.values())
        return [cache.past for cache in caches], [cache.present for cache in caches]


def _order(value: ir.Value) -> tuple[int, str]:
    role = role_of(value)
    return (role.layer or 0, role.kind) if role is not None else (0, "")


def lower_attention(tokens: Tokens, form: Standard, caches: Caches, node: ir.Node) -> None:
    """ATTENTION: projections, attention, and the projection behind it."""
    of = Attention.of(node)
    output = node.outputs[0]
    what = tokens.called(node)
    if of.k_cache is None or of.v_cache is None or of.pos is None:
        raise tokens.refuse(node, "it has no caches, or no position in them: ONNX is made of a decode graph")
    if of.mask is not None:
        raise tokens.refuse(node, "it has a mask of its own, not the causal one")
    if not tokens.is_position(of.pos):
        raise tokens.refuse(node, f"{of.pos.name} is not the position of its token")
    x = tokens.viewed(of.x, node, shape_of(of.x)[-1:])
    tables = None
    if of.cos is not None and of.sin is not None:
        tables = Tables.of(tokens, of.cos, of.sin, of.H)
        if tables is None:
            raise tokens.refuse(node, "its rotation does not depend on the position alone")
    matrices = [matrix_of(w, what) for w in (of.wq, of.wk, of.wv)]
    keys, values = caches.take(of.k_cache, node), caches.take(of.v_cache, node)
    heads = of.N, of.K, of.H
    name = f"{output.name}/attention"
    y = form.attend_projected(
        Projected(x, matrices, [None] * 3, *heads, tables, keys, values, of.H**-0.5, name)
    )
    tokens.put(output, form.linear(y, matrix_of(of.wo, what), None, output.name or ""))


def lower_causal_attention(tokens: Tokens, form: Standard, caches: Caches, node: ir.Node) -> None:
    """`o2o.causal_attention` to caches that were written before it."""
    q, k, v, position = causal_attention.operands(node)
    scale, _ = causal_attention.unpack(node)
    if not tokens.is_position(position):
        raise tokens.refuse(node, f"{position.name} is not the position of its token")
    _, N, _, H = shape_of(q)
    K = shape_of(k)[1]
    (key_cache, new_key), (value_cache, new_value) = (_written(tokens, caches, node, y) for y in (k, v))
    keys, values = caches.take(key_cache, node), caches.take(value_cache, node)
    tables: tuple[Tables | None, Tables | None] = None, None
    q_rotation, k_rotation = (_rotation(tokens, y) for y in (q, new_key))
    if q_rotation is not None and k_rotation is not None:
        (q, q_tables), (new_key, k_tables) = q_rotation, k_rotation
        tables = q_tables, k_tables
    output = node.outputs[0]
    name = output.name or ""
    projected = _projections(tokens, (q, new_key, new_value), node)
    if projected is not None and tables[0] == tables[1]:
        of = Projected(*projected, N, K, H, tables[0], keys, values, scale, name)
        tokens.put(output, form.attend_projected(of))
        return
    queries, new_keys, new_values = (
        Heads(tokens.viewed(y, node, [count * H]), count, H, turned)
        for y, count, turned in ((q, N, tables[0]), (new_key, K, tables[1]), (new_value, K, None))
    )
    y = form.attend(Attend(queries, new_keys, new_values, keys, values, scale, name))
    tokens.put(output, y)


def _projections(
    tokens: Tokens, values: Sequence[ir.Value], user: ir.Node
) -> tuple[ir.Value, list[Matrix], list[ir.Value | None]] | None:
    """x, the matrices and the biases, when `values` are FULLY_CONNECTED of one x, by head."""
    xs, matrices, biases = [], [], []
    for value in values:
        source, way = trace_layout(value)
        node = producer_of(source, "FULLY_CONNECTED")
        moved = any(step.op_type == "BROADCAST_TO" or mixes_token(step) for step in way)
        if node is None or moved or any(attribute(node, option, 0) for option in _OPTIONS):
            return None
        x, w, bias = [*node.inputs, None][:3]
        xs.append(x)
        matrices.append(matrix_of(w, tokens.called(node)))
        biases.append(None if bias is None else constant_vector(tokens, bias, node))
    x = xs[0]
    if x is None or any(other is not x for other in xs) or math.prod(shape_of(x)) != matrices[0].columns:
        return None
    return tokens.viewed(x, user, [matrices[0].columns]), matrices, biases


_OPTIONS = ("fusedActivationFunction", "weightsFormat")


def _written(tokens: Tokens, caches: Caches, node: ir.Node, value: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The cache and the new row that `value`, keys or values by head, has come from. Raises ModelError."""
    turned = producer_of(value, "TRANSPOSE")
    by_head = turned is not None and constant_ints(turned.inputs[1]) == [0, 2, 1, 3]
    source = turned.inputs[0] if turned is not None and by_head else value
    found = caches.written.get(source) if source is not None else None
    if found is None or caches.by_input[found[0]].layout != ("BNTH" if source is value else "BTNH"):
        raise tokens.refuse(node, f"{value.name} is no cache that a DYNAMIC_UPDATE_SLICE has written")
    return found


def _rotation(tokens: Tokens, value: ir.Value) -> tuple[ir.Value, Tables] | None:
    """What `value` was before it was rotated, by tables of the position."""
    node = producer_of(value, "ROPE")
    if node is None or attribute(node, "mode", 0) != 0:
        return None
    x, sin, cos = node.inputs
    assert x is not None
    assert sin is not None
    assert cos is not None
    tables = Tables.of(tokens, cos, sin, shape_of(x)[-1])
    return None if tables is None else (x, tables)


def lower_rope(tokens: Tokens, form: Standard, node: ir.Node) -> None:
    """ROPE of [1, N, 1, H] by itself."""
    x, sin, cos = node.inputs
    assert x is not None
    assert sin is not None
    assert cos is not None
    if attribute(node, "mode", 0) != 0:
        raise tokens.refuse(node, "it rotates neighbours (GPT_J), not halves")
    _, N, _, H = shape_of(x)
    tables = Tables.of(tokens, cos, sin, H)
    heads = tokens.viewed(x, node, [N, H])
    if tables is not None:
        tokens.put(node.outputs[0], form.rotated(heads, tables, node.outputs[0].name or ""))
        return
    broadcast = (tokens.operand(table, node, 2) for table in (cos, sin))
    tokens.put(node.outputs[0], form.rotated_by(heads, *broadcast))
