"""Attention of a decode graph in ONNX: `o2o.attention` after a DYNAMIC_UPDATE_SLICE into each cache.

ATTENTION is expanded to it first (`o2o.rewriting.attention.expand_attention`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from o2o.contract import role_of
from o2o.errors import ModelError
from o2o.lower.onnx.builder import FLOAT, dims
from o2o.lower.onnx.cached_attention import Cache, CachedAttention, Heads, ProjectedAttention, Scores
from o2o.lower.onnx.layout import permutes_token
from o2o.lower.onnx.operators import constant_vector
from o2o.lower.onnx.per_token import TokenValues
from o2o.lower.onnx.rotation import rotation_of
from o2o.lower.onnx.standard_form import StandardForm
from o2o.lower.onnx.weights import Matrix, matrix_of
from o2o.model import attribute, shape_of
from o2o.operators.core_attention import CoreAttention
from o2o.operators.masks import HIDDEN_THRESHOLD
from o2o.rewriting.axes import trace_layout
from o2o.rewriting.matchers import constant_ints, producer_of


class Caches:
    """The KV caches of a decode graph. Each is written once.

    Attributes:
        by_input: The ONNX input and output of each cache, by its Circle input; by layer, key before value.
        written: (cache, new row) by the result of the DYNAMIC_UPDATE_SLICE that writes the row.
    """

    def __init__(self, tokens: TokenValues) -> None:
        self.tokens = tokens
        self.by_input: dict[ir.Value, Cache] = {}
        self.written: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
        self._claimed: dict[ir.Value, ir.Value] = {}
        for value in sorted(tokens.graph.inputs, key=_order):
            role = role_of(value)
            if role is None or not role.is_cache:
                continue
            if role.layout is None or role.layer is None or len(shape_of(value)) != 4 or value.dtype != FLOAT:
                raise ModelError(f"the cache {value.name} needs a layer, a layout and four axes of float32")
            shape = shape_of(value)
            B, K, S, H = (shape[role.layout.index(axis)] for axis in "BNTH")
            row = tokens.position if role.capacity is None else tokens.window_row
            if (1, tokens.capacity) != (B, role.capacity or S) or row is None:
                raise ModelError(f"{value.name} {list(shape)} is not a cache of {tokens.capacity} tokens")
            kind, _ = role.slot
            names = (f"{when}_{kind}_{role.layer}" for when in ("past", "present"))
            past, present = (tokens.op.value(name, FLOAT, [1, K, S, H]) for name in names)
            past.meta["role"] = replace(role, layout="BNTH")
            present.meta["role"] = past.meta["role"].output_role
            self.by_input[value] = Cache(past, present, role.layout, row)
            for use in value.uses():
                if use.node.op_type == "CONCATENATION":
                    reason = f"it concatenates {value.name} and new rows"
                    raise tokens.error(use.node, f"{reason}: export the decode graph with --cache static")

    def claim(self, written: ir.Value, node: ir.Node) -> Cache:
        """Return the cache that a node writes.

        Args:
            written: The result of the DYNAMIC_UPDATE_SLICE, a key of `written`.
            node: The node that writes the row, for messages.

        Returns:
            Its ONNX input and output.

        Raises:
            ModelError: Another row was written into the cache.
        """
        value, _ = self.written[written]
        if self._claimed.setdefault(value, written) is not written:
            raise self.tokens.error(node, f"{value.name} is written twice")
        return self.by_input[value]

    def is_claimed(self, written: ir.Value) -> bool:
        """Return whether a node writes a row already.

        Args:
            written: The result of the DYNAMIC_UPDATE_SLICE, a key of `written`.

        Returns:
            Whether `claim` or `present` was called for its cache.
        """
        return self.written[written][0] in self._claimed

    def present(self, written: ir.Value, node: ir.Node) -> Cache:
        """Return a cache that holds its new rows. They are written now if no attention writes them.

        Args:
            written: The result of the DYNAMIC_UPDATE_SLICE, a key of `written`.
            node: The node that reads the cache, for messages.

        Returns:
            Its ONNX input and output.

        Raises:
            ModelError: Another row was written into the cache.
        """
        is_claimed, cache = self.is_claimed(written), self.claim(written, node)
        if not is_claimed:
            op, (_, row) = self.tokens.op, self.written[written]
            _, K, _, H = dims(cache.past)
            rows = op.reshape(self.tokens.get(row, node), [1, "T", K, H])
            rows = op.transpose(rows, [0, 2, 1, 3], f"{row.name}/by_head")
            operands = [cache.past, rows, cache.row]
            op.add("TensorScatter", operands, [cache.present], axis=2)
        return cache

    def update(self, node: ir.Node) -> None:
        """Register a DYNAMIC_UPDATE_SLICE of one token's row into a cache.

        Args:
            node: DYNAMIC_UPDATE_SLICE.

        Raises:
            ModelError: It writes anything else, or at another position than the token's.
        """
        value, row, start = node.inputs
        assert value is not None
        assert row is not None
        assert start is not None
        cache = self.by_input.get(value)
        if cache is None:
            raise self.tokens.error(
                node, f"it updates {value.name}, which is not a cache in the o2o.contract"
            )
        axis = cache.layout.index("T")
        shape = shape_of(value)
        if shape_of(row) != (*shape[:axis], 1, *shape[axis + 1 :]):
            raise self.tokens.error(node, "it writes something other than one token's row")
        rows = shape[axis]
        starts = self.tokens.row_table(start, cache.row, rows)
        wanted = np.zeros((rows, 4))
        wanted[:, axis] = np.arange(rows)
        if starts is None or not np.array_equal(starts.reshape(rows, -1), wanted):
            raise self.tokens.error(
                node, f"it writes at {start.name}, which is not the graph's {cache.row.name} input"
            )
        self.written[node.outputs[0]] = value, row

    def unwritten(self) -> list[str]:
        """Return the names of the caches that no node writes.

        Returns:
            Names of Circle inputs.
        """
        return [value.name or "" for value in self.by_input if value not in self._claimed]

    def inputs_and_outputs(self) -> tuple[list[ir.Value], list[ir.Value]]:
        """Return the ONNX inputs and outputs of the caches.

        Returns:
            Two lists: key 0, value 0, key 1, ...
        """
        caches = list(self.by_input.values())
        return [cache.past for cache in caches], [cache.present for cache in caches]


def _order(value: ir.Value) -> tuple[int, str]:
    role = role_of(value)
    return (role.layer or 0, role.kind) if role is not None else (0, "")


def lower_core_attention(tokens: TokenValues, form: StandardForm, caches: Caches, node: ir.Node) -> None:
    """Lower `o2o.attention` over caches that DYNAMIC_UPDATE_SLICE writes.

    Projections in front of it are lowered together with it where `form` has one operator for both.

    Args:
        tokens: The values of the graph.
        form: The ONNX operators to use.
        caches: The KV caches of the graph.
        node: `o2o.attention`.

    Raises:
        ModelError: Its keys or values are not caches, or its position is not the token's.
    """
    of = CoreAttention.of(node)
    rows = [tokens.position] if tokens.window_row is None else [tokens.position, tokens.window_row]
    row = next((row for row in rows if tokens.is_row(of.position, row, of.S)), None)
    if row is None:
        raise tokens.error(node, f"its position operand {of.position.name} is not the graph's position input")
    scores = _scores(tokens, form, of, node, row)
    q, q_tables = rotation_of(tokens, of.q) or (of.q, None)
    output = node.outputs[0]
    name = output.name or ""
    writes = [_cache_write(caches, y) for y in (of.k, of.v)]
    if any(write is None or caches.is_claimed(write) for write in writes):
        queries = Heads(tokens.reshaped(q, node, [of.N * of.H]), of.N, of.H, q_tables)
        computed_keys, computed_values = (_by_head(tokens, y, node) for y in (of.k, of.v))
        tokens.assign(output, form.attend_to(queries, computed_keys, computed_values, scores, name))
        return
    keys, values = (caches.claim(write, node) for write in writes if write is not None)
    if keys.row is not row or values.row is not row:
        raise tokens.error(node, f"its queries are in row {row.name}, and its keys in {keys.row.name}")
    k, v = (caches.written[write][1] for write in writes if write is not None)
    k, k_tables = rotation_of(tokens, k) or (k, None)
    projections = _projections(tokens, (q, k, v), node)
    if projections is not None and q_tables == k_tables:
        projected = ProjectedAttention(*projections, of.N, of.K, of.H, q_tables, keys, values, scores, name)
        tokens.assign(output, form.attend_projected(projected))
        return
    queries, new_keys, new_values = (
        Heads(tokens.reshaped(y, node, [count * of.H]), count, of.H, tables)
        for y, count, tables in ((q, of.N, q_tables), (k, of.K, k_tables), (v, of.K, None))
    )
    attend = CachedAttention(queries, new_keys, new_values, keys, values, scores, name)
    tokens.assign(output, form.attend(attend))


def _scores(
    tokens: TokenValues, form: StandardForm, of: CoreAttention, node: ir.Node, row: ir.Value
) -> Scores:
    """The options and the small operands of attention. Raises ModelError for what depends on the tokens."""
    vectors: dict[str, ir.Value | None] = {}
    for name, value in (("slopes", of.slopes), ("sinks", of.sinks)):
        array = None if value is None else tokens.fold(value)
        if value is not None and array is None:
            raise tokens.error(node, f"its {name} operand {value.name} is not a constant")
        vectors[name] = (
            None if array is None else tokens.op.constant(array, f"{of.q.name}/{name}", np.float32)
        )
    window: int = of.window
    mask: ir.Value | None = None
    if of.mask is not None and tokens.rows.axes.get(of.mask) == -1:
        window, mask = 0, _computed_mask(tokens, form, of.mask, node)
    elif of.mask is not None:
        window, mask = _mask(tokens, of.mask, of, node)
    return Scores(row, of.scale, of.softcap, window, **vectors, mask=mask)


def _mask(
    tokens: TokenValues, mask: ir.Value, of: CoreAttention, node: ir.Node
) -> tuple[int, ir.Value | None]:
    """The window, if the mask only hides keys, and None; else 0 and the mask in ONNX, [1, 1 or N, T, S]."""
    S = of.S
    constant = tokens.fold(mask)
    table = tokens.table(mask) if constant is None else np.broadcast_to(constant, (S, *constant.shape))
    if table is None:
        raise tokens.error(node, f"its mask {mask.name} depends on more than position and caches")
    heads = [1, 1, 1, *shape_of(mask)][-3]
    table = np.broadcast_to(table.reshape(S, heads, -1), (S, heads, S))
    hidden = table <= HIDDEN_THRESHOLD
    distance = np.arange(S)[:, None, None] - np.arange(S)
    if not np.all(hidden[np.broadcast_to(distance < 0, hidden.shape)]):
        raise tokens.error(node, f"its mask {mask.name} shows keys after the position of the query")
    if np.all(hidden | (table == 0)):
        window = int((~hidden[-1, 0]).sum())
        if np.array_equal(hidden, np.broadcast_to((distance < 0) | (distance >= window), hidden.shape)):
            return window if window < S else 0, None
    name = mask.name or "mask"
    rows = tokens.op.constant(table, f"{name}/table", np.float32)
    shape = [*tokens.leading, heads, S]
    gathered = tokens.op.node("Gather", [rows, tokens.positions], shape, axis=0, name=name)
    by_token = tokens.op.reshape(gathered, [1, "T", heads, S])
    return 0, tokens.op.transpose(by_token, [0, 2, 1, 3], f"{name}/by_head")


def _computed_mask(tokens: TokenValues, form: StandardForm, mask: ir.Value, node: ir.Node) -> ir.Value:
    """A mask that is computed from cached rows, and hides those behind the query: [1, 1 or N, T, S]."""
    shape, name = [1, 1, 1, *shape_of(mask)], mask.name or "mask"
    heads, S = shape[-3], shape[-1]
    lowered = tokens.reshaped(mask, node, [heads, S])
    by_token = tokens.op.reshape(lowered, [1, tokens.leading_of(lowered)[-1], heads, S])
    return form.hide_later(tokens.op.transpose(by_token, [0, 2, 1, 3], f"{name}/by_head"))


def _projections(
    tokens: TokenValues, values: Sequence[ir.Value], user: ir.Node
) -> tuple[ir.Value, list[Matrix], list[ir.Value | None]] | None:
    """x, matrices and biases, if each of `values` is a FULLY_CONNECTED of the same x, by head; else None."""
    xs, matrices, biases = [], [], []
    for value in values:
        source, path = trace_layout(value)
        node = producer_of(source, "FULLY_CONNECTED")
        moved = any(step.op_type == "BROADCAST_TO" or permutes_token(step) for step in path)
        if node is None or moved or any(attribute(node, option, 0) for option in _OPTIONS):
            return None
        x, w, bias = [*node.inputs, None][:3]
        xs.append(x)
        matrices.append(matrix_of(w, tokens.locate(node)))
        biases.append(None if bias is None else constant_vector(tokens, bias, node))
    x = xs[0]
    if x is None or any(other is not x for other in xs) or math.prod(shape_of(x)) != matrices[0].columns:
        return None
    return tokens.reshaped(x, user, [matrices[0].columns]), matrices, biases


_OPTIONS = ("fusedActivationFunction", "weightsFormat")


def _cache_write(caches: Caches, value: ir.Value) -> ir.Value | None:
    """The result of the DYNAMIC_UPDATE_SLICE behind `value`, keys or values by head; None for others."""
    transpose = producer_of(value, "TRANSPOSE")
    by_head = transpose is not None and constant_ints(transpose.inputs[1]) == [0, 2, 1, 3]
    source = transpose.inputs[0] if transpose is not None and by_head else value
    written = caches.written.get(source) if source is not None else None
    if written is None or caches.by_input[written[0]].layout != ("BNTH" if source is value else "BTNH"):
        return None
    return source


def _by_head(tokens: TokenValues, value: ir.Value, node: ir.Node) -> ir.Value:
    """Keys or values that are computed from cached rows, [1, K, S, H]. Raises ModelError for others."""
    if (by_head := tokens.rows.by_head(value)) is None:
        raise tokens.error(
            node, f"{value.name} is not computed row by row from caches that DYNAMIC_UPDATE_SLICE writes"
        )
    return by_head


def lower_rope(tokens: TokenValues, form: StandardForm, node: ir.Node) -> None:
    """Lower a ROPE that is not in front of attention.

    Args:
        tokens: The values of the graph.
        form: The ONNX operators to use.
        node: ROPE of x [1, N, 1, H], as `o2o.operators.reference` defines it.

    Raises:
        ModelError: Its mode is GPT_J, which rotates neighboring elements rather than halves.
    """
    x, sin, cos = node.inputs
    assert x is not None
    if attribute(node, "mode", 0) != 0:
        raise tokens.error(node, "its mode GPT_J has no ONNX lowering: only GPT_NEOX has one")
    _, N, _, H = shape_of(x)
    if (rotation := rotation_of(tokens, node.outputs[0])) is not None:
        heads = Heads(tokens.reshaped(x, node, [N * H]), N, H, rotation[1])
        rotated = form.rope(heads, node.outputs[0].name or "")
        tokens.assign(node.outputs[0], tokens.op.reshape(rotated, [*tokens.leading, N, H]))
        return
    broadcast = (tokens.operand(table, node, 2) for table in (cos, sin))
    tokens.assign(node.outputs[0], form.rope_broadcast(tokens.reshaped(x, node, [N, H]), *broadcast))
