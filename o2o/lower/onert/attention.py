"""`o2o.attention` of one token in operators that onert has, without writing into the caches.

The cache holds the keys and values of the tokens before; the new ones are attended to separately:

    scores  = [q k_cache' | q k'] + mask              [1, K, G, S + 1]
    weights = softmax(scale * scores) = [w_cache | w]
    result  = w_cache v_cache + w v

So no cache is copied. Value caches become [1, K, H, S] (BNHT). Otherwise onert's BATCH_MATMUL would transpose
its right operand at every step, which takes four times as long as the product. ATTENTION is expanded first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from o2o.contract import Layout, OnertLayout, Role, role_of
from o2o.errors import ModelError
from o2o.lower.onert.dynamic_update_slice import output_row
from o2o.model import Model, is_dynamic, shape_of
from o2o.operators.attention import Attention
from o2o.operators.core_attention import CoreAttention, is_core_attention
from o2o.operators.masks import HIDDEN_SCORE
from o2o.operators.reference import evaluate, unknown_sources
from o2o.rewriting.attention.causality import Keys, prove_position, prove_start
from o2o.rewriting.builder import Builder
from o2o.rewriting.matchers import MatchFailure, producer_of
from o2o.rewriting.rewire import replace_output

Proven = set[tuple[ir.Value, ir.Value, Layout]]
"""Starts of writes that follow a position, the position, and the layout of the cache."""


@dataclass
class _Write:
    """A DYNAMIC_UPDATE_SLICE of one row into a cache.

    Attributes:
        node: The operator.
        cache: The graph's input.
        row: The new row, in the cache's layout.
        role: The role of the cache.
        layout: The layout of the cache.
    """

    node: ir.Node
    cache: ir.Value
    row: ir.Value
    role: Role
    layout: Layout


def check_attention(model: Model, graph: ir.Graph, node: ir.Node) -> None:
    """Refuse an ATTENTION that is not one step of decoding.

    Args:
        model: The model of `graph`.
        graph: The decode graph.
        node: ATTENTION.

    Raises:
        ModelError: It has several tokens, no caches, or caches that are not plain inputs with a role.
    """
    of, where = Attention.of(node), model.locate(graph, node)
    if of.k_cache is None or of.v_cache is None:
        raise ModelError(f"{where} has no caches: onert runs decode only")
    for value in node.inputs:
        if value is not None and is_dynamic(value):
            raise ModelError(f"{where}: {value.name} has no fixed shape")
    if of.T != 1:
        raise ModelError(f"{where} takes {of.T} tokens: onert runs decode only, one token at a time")
    for cache in (of.k_cache, of.v_cache):
        if not cache.is_graph_input() or cache.is_graph_output():
            raise ModelError(f"{where}: its cache {cache.name} is not an input, or is also an output")
        if len(cache.uses()) > 1:
            raise ModelError(f"{where}: its cache {cache.name} has other users too")
        if role_of(cache) is None:
            raise ModelError(f"{where}: its cache {cache.name} has no role in the o2o.contract")


def legalize_core_attentions(model: Model, graph: ir.Graph) -> None:
    """Replace each `o2o.attention` of one token, and the writes into its caches, by builtins.

    Args:
        model: The model of `graph`.
        graph: The decode graph; changed in place.

    Raises:
        ModelError: See `legalize_core_attention`.
    """
    proven: Proven = set()
    for node in [node for node in graph if is_core_attention(node)]:
        legalize_core_attention(model, graph, node, proven)


def legalize_core_attention(model: Model, graph: ir.Graph, node: ir.Node, proven: Proven) -> None:
    """Replace `o2o.attention` of one token, and the writes into its caches, by builtins.

    Args:
        model: The model of `graph`.
        graph: The decode graph; changed in place.
        node: `o2o.attention` over two caches that DYNAMIC_UPDATE_SLICE writes.
        proven: What was proven of other layers; gets what is proven here.

    Raises:
        ModelError: It has another mask or several tokens, or its keys and values are no such caches.
    """
    of, where = CoreAttention.of(node), model.locate(graph, node)
    if of.mask is not None:
        raise ModelError(
            f"{where} has a mask, {of.mask.name}, that is not proven to be causal with a window or slopes at "
            "most: no other can be legalized for onert"
        )
    if of.T != 1:
        raise ModelError(f"{where} takes {of.T} tokens: onert runs decode only, one token at a time")
    N, K, H, S = of.N, of.K, of.H, of.S
    G = N // K
    writes = [_write_of(where, value, of, proven) for value in (of.k, of.v)]
    old = node.outputs[0]
    op = Builder(graph, before=node, prefix=f"{old.name}/")
    rows = [op.reshape(write.row, [1, K, 1, H], name="row") for write in writes]
    for operand in (1, 2):
        node.replace_input_with(operand, None)
    k, v = rows
    keys = _change_cache(model, graph, op, writes[0], "BNTH", k)
    values = _change_cache(model, graph, op, writes[1], "BNHT", v)

    # The scale is that of the softmax, unless something is computed from the scaled scores before.
    in_softmax = not (of.softcap or of.slopes is not None or of.sinks is not None)
    factor = 1.0 if in_softmax else of.scale / (of.softcap or 1.0)
    q = op.reshape(of.q, [1, K, G, H], name="groups")
    if factor != 1:
        q = op.node("MUL", [q, op.constant(factor, "scale", np.float32)], [1, K, G, H], name="scaled")
    both_scores = [_times_transposed(op, q, x, "scores") for x in (keys, k)]
    scores = op.node("CONCATENATION", both_scores, [1, K, G, S + 1], name="all_scores", axis=3)
    if of.softcap:
        scores = op.node("TANH", [scores], [1, K, G, S + 1], name="bounded")
        cap = op.constant(of.softcap, "softcap", np.float32)
        scores = op.node("MUL", [scores, cap], [1, K, G, S + 1], name="capped")
    position = of.position if unknown_sources(of.position) else None
    if of.slopes is not None and position is not None:
        bias = _slope_bias(op, op.reshape(of.slopes, [1, K, G, 1], name="slopes"), position, S)
        scores = op.node("ADD", [scores, bias], [1, K, G, S + 1], name="biased")
    mask = _mask(op, position, S, of.window)
    scores = op.node("ADD", [scores, mask], [1, K, G, S + 1], name="masked")
    columns = S + 1
    if of.sinks is not None:
        columns += 1
        sinks = op.reshape(of.sinks, [1, K, G, 1], name="sinks")
        scores = op.node("CONCATENATION", [scores, sinks], [1, K, G, columns], name="with_sinks", axis=3)
    beta = of.scale if in_softmax else 1.0
    weights = op.node("SOFTMAX", [scores], [1, K, G, columns], name="weights", beta=beta)
    cache_weights = op.slice(weights, [0, 0, 0, 0], [1, K, G, S], name="cache_weights")
    new_weight = op.slice(weights, [0, 0, 0, S], [1, K, G, 1], name="new_weight")
    from_cache = _times_transposed(op, cache_weights, values, "mixed")
    from_new = _times_transposed(op, new_weight, op.reshape(v, [1, K, H, 1], name="column"), "added")
    y = op.node("ADD", [from_cache, from_new], [1, K, G, H], name="heads")
    replace_output(model, old, op.reshape(y, shape_of(old), name="all_heads"))
    graph.remove(node, safe=True)


def _write_of(where: str, value: ir.Value, of: CoreAttention, proven: Proven) -> _Write:
    """The write of the cache that `value` is. Raises ModelError."""
    write = producer_of(value, "DYNAMIC_UPDATE_SLICE")
    turn = producer_of(value, "TRANSPOSE")
    if write is None and turn is not None and len(value.uses()) == 1:
        write = producer_of(turn.inputs[0], "DYNAMIC_UPDATE_SLICE")
    cache, row, start = write.inputs if write is not None else (None, None, None)
    role = role_of(cache) if cache is not None else None
    if write is None or cache is None or row is None or start is None or role is None:
        raise ModelError(
            f"{where}: {value.name} is not a cache that DYNAMIC_UPDATE_SLICE writes and the o2o.contract "
            "names: export with --cache static"
        )
    layout: Layout = "BNTH" if turn is None or write is value.producer() else "BTNH"
    one_row = (1, of.K, 1, of.H) if layout == "BNTH" else (1, 1, of.K, of.H)
    if not cache.is_graph_input() or cache.is_graph_output():
        raise ModelError(f"{where}: its cache {cache.name} is not an input, or is also an output")
    if max(len(cache.uses()), len(write.outputs[0].uses())) > 1 or shape_of(row) != one_row:
        raise ModelError(f"{where}: its cache {cache.name} has other users too, or gets several rows")
    _prove_row(where, start, layout, of, proven)
    return _Write(write, cache, row, role, layout)


def _prove_row(where: str, start: ir.Value, layout: Layout, of: CoreAttention, proven: Proven) -> None:
    """Raise ModelError unless the row that is written is that of the attention's position."""
    if (start, of.position, layout) in proven:
        return
    keys = Keys(1, of.S, appended=False)
    try:
        if not any(map(unknown_sources, (start, of.position))):
            if any(evaluate(value, {}).any() for value in (start, of.position)):
                raise ModelError(f"{where} is at a constant position other than 0")
            return
        if prove_start(start, keys, layout.index("T")) is not prove_position(of.position, keys):
            raise ModelError(f"{where}: its position is not the row that is written")
    except MatchFailure as failure:
        raise ModelError(f"{where}: {failure}") from failure
    proven.add((start, of.position, layout))


def _change_cache(
    model: Model, graph: ir.Graph, op: Builder, write: _Write, new: Layout | OnertLayout, row: ir.Value
) -> ir.Value:
    """Change the layout of the cache. Its new `row` [1, K, 1, H] becomes an output instead of the cache."""
    cache, updated = write.cache, write.node.outputs[0]
    for use in list(updated.uses()):  # a TRANSPOSE, whose only user was the attention
        graph.remove(use.node, safe=True)
    if updated.is_graph_output():
        role = role_of(updated) or write.role.output_role
        output_row(model, graph, op, updated, row, replace(role, layout="BNTH"))
    graph.remove(write.node, safe=True)
    cache.shape = ir.Shape([shape_of(cache)[write.layout.index(axis)] for axis in new])
    cache.meta["role"] = replace(write.role, layout=new)
    return cache


def _times_transposed(op: Builder, x: ir.Value, y: ir.Value, name: str) -> ir.Value:
    """[1, K, G, a] times the transpose of [1, K, b, a]: [1, K, G, b]."""
    shape = [*shape_of(x)[:3], shape_of(y)[2]]
    return op.node("BATCH_MATMUL", [x, y], shape, name=name, adjointLhs=False, adjointRhs=True)


def _mask(op: Builder, position: ir.Value | None, S: int, window: int = 0) -> ir.Value:
    """The mask [1, 1, 1, S + 1]: row j of the cache is visible if j < `position`, the new row always."""
    if position is None:
        entries = np.asarray([HIDDEN_SCORE] * S + [0.0], np.float32)
        return op.constant(entries.reshape(1, 1, 1, S + 1), "mask")
    assert position.dtype is not None
    shape = [1, 1, 1, S + 1]
    dtype = position.dtype.numpy()
    current = op.reshape(position, [1, 1, 1, 1], name="position")
    keys = op.constant(np.asarray([*range(S), -1], dtype).reshape(shape), "keys")
    is_visible = op.node("LESS", [keys, current], shape, ir.DataType.BOOL, name="visible")
    if window:  # the last window - 1 rows of the cache, and the new row
        after = np.asarray([*range(window, S + window), np.iinfo(np.int32).max], dtype).reshape(shape)
        is_near = op.node(
            "GREATER", [op.constant(after, "window"), current], shape, ir.DataType.BOOL, name="near"
        )
        is_visible = op.node("LOGICAL_AND", [is_visible, is_near], shape, ir.DataType.BOOL, name="visible")
    visible, hidden = (
        op.constant(score, name, np.float32) for score, name in ((0.0, "shown"), (HIDDEN_SCORE, "hidden"))
    )
    return op.node("SELECT_V2", [is_visible, visible, hidden], shape, ir.DataType.FLOAT, name="mask")


def _slope_bias(op: Builder, slopes: ir.Value, position: ir.Value, S: int) -> ir.Value:
    """slopes * (j - position) for the rows j of the cache that are visible, 0 for the new row."""
    shape = [1, 1, 1, S + 1]
    keys = op.constant(np.asarray([*range(S), HIDDEN_SCORE * -1.0], np.float32).reshape(shape), "rows")
    current = op.reshape(position, [1, 1, 1, 1], name="position")
    current = op.node("CAST", [current], [1, 1, 1, 1], ir.DataType.FLOAT, name="now")
    distance = op.node("SUB", [keys, current], shape, name="ahead")
    zero = op.constant(np.zeros((1, 1, 1, 1)), "zero", np.float32)
    distance = op.node("MINIMUM", [distance, zero], shape, name="distance")
    return op.node("MUL", [slopes, distance], [*shape_of(slopes)[:3], S + 1], name="bias")
