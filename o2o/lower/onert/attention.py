"""ATTENTION of one token in operators that onert has, without writing into the caches.

The cache holds the keys and values of the tokens before; the new ones are attended to separately:

    scores  = [q k_cache' | q k'] + mask              [1, K, G, S + 1]
    weights = softmax(scores / sqrt(H)) = [w_cache | w]
    result  = w_cache v_cache + w v

So no cache is copied. Value caches become [1, K, H, S] (BNHT). Otherwise onert's BATCH_MATMUL would transpose
its right operand at every step, which takes four times as long as the product.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from o2o.contract import Layout, OnertLayout, role_of
from o2o.errors import ModelError
from o2o.lower.onert.rope import rotate_one
from o2o.model import Model, is_dynamic, shape_of
from o2o.operators.attention import Attention
from o2o.operators.masks import HIDDEN_SCORE
from o2o.rewriting.builder import Builder
from o2o.rewriting.cache_outputs import add_rows_output
from o2o.rewriting.rewire import replace_output


def legalize_attention(model: Model, graph: ir.Graph, node: ir.Node) -> None:
    """Replace ATTENTION of one token, [1, 1, D] -> [1, 1, D], by builtins.

    Args:
        model: The model of `graph`.
        graph: The decode graph; changed in place.
        node: ATTENTION with two caches, as `o2o.operators.reference` defines it.

    Raises:
        ModelError: It has a mask, several tokens, no caches, or caches that are not plain inputs with a role.
    """
    of = Attention.of(node)
    _check(model, graph, node, of)
    assert of.k_cache is not None
    assert of.v_cache is not None
    N, K, H, S = of.N, of.K, of.H, of.S
    G = N // K
    (D,) = shape_of(of.x)[-1:]
    old = node.outputs[0]
    op = Builder(graph, before=node, prefix=f"{old.name}/")
    x = op.reshape(of.x, [1, D], name="x")

    q, k, v = (
        op.node("FULLY_CONNECTED", [x, w, None], [1, heads * H], name=name)
        for w, heads, name in ((of.wq, N, "q"), (of.wk, K, "k"), (of.wv, K, "v"))
    )
    q, k = op.reshape(q, [1, N, 1, H], name="q_heads"), op.reshape(k, [1, K, 1, H], name="k_heads")
    v = op.reshape(v, [1, K, 1, H], name="v_heads")
    if of.cos is not None and of.sin is not None:
        q, k = rotate_one(op, q, of.cos, of.sin), rotate_one(op, k, of.cos, of.sin)
    layout = of.layout  # read before the caches change theirs
    keys = _change_cache(model, graph, of.k_cache, layout, "BNTH", k)
    values = _change_cache(model, graph, of.v_cache, layout, "BNHT", v)

    q = op.reshape(q, [1, K, G, H], name="groups")
    both_scores = [_times_transposed(op, q, rows, "scores") for rows in (keys, k)]
    scores = op.node("CONCATENATION", both_scores, [1, K, G, S + 1], name="all_scores", axis=3)
    scores = op.node("ADD", [scores, _mask(op, of.pos, S)], [1, K, G, S + 1], name="masked")
    weights = op.node("SOFTMAX", [scores], [1, K, G, S + 1], name="weights", beta=H**-0.5)
    cache_weights = op.slice(weights, [0, 0, 0, 0], [1, K, G, S], name="cache_weights")
    new_weight = op.slice(weights, [0, 0, 0, S], [1, K, G, 1], name="new_weight")
    from_cache = _times_transposed(op, cache_weights, values, "mixed")
    from_new = _times_transposed(op, new_weight, op.reshape(v, [1, K, H, 1], name="column"), "added")
    y = op.node("ADD", [from_cache, from_new], [1, K, G, H], name="heads")
    y = op.reshape(y, [1, N * H], name="concatenated_heads")
    y = op.node("FULLY_CONNECTED", [y, of.wo, None], [1, shape_of(old)[-1]], name="output")
    replace_output(model, old, op.reshape(y, shape_of(old), name="output_row"))
    graph.remove(node, safe=True)


def _check(model: Model, graph: ir.Graph, node: ir.Node, of: Attention) -> None:
    """Raise ModelError for anything but one step of decoding."""
    where = model.locate(graph, node)
    if of.k_cache is None or of.v_cache is None:
        raise ModelError(f"{where} has no caches: onert runs decode only")
    if of.mask is not None:
        raise ModelError(f"{where} has a mask: only causal attention can be legalized for onert")
    for value in node.inputs:
        if value is not None and is_dynamic(value):
            raise ModelError(f"{where}: {value.name} has no fixed shape")
    if of.T != 1:
        raise ModelError(f"{where} takes {of.T} tokens: onert runs decode only, one token at a time")
    for cache in (of.k_cache, of.v_cache):
        if not cache.is_graph_input():
            raise ModelError(f"{where}: its cache {cache.name} is not an input")
        if len(cache.uses()) > 1:
            raise ModelError(f"{where}: its cache {cache.name} has other users too")
        if role_of(cache) is None:
            raise ModelError(f"{where}: its cache {cache.name} has no role in the o2o.contract")


def _change_cache(
    model: Model, graph: ir.Graph, cache: ir.Value, old: Layout, new: Layout | OnertLayout, row: ir.Value
) -> ir.Value:
    """Change the layout of the input `cache`, and make its new `row` [1, K, 1, H] an output."""
    role = role_of(cache)
    assert role is not None
    cache.shape = ir.Shape([shape_of(cache)[old.index(axis)] for axis in new])
    cache.meta["role"] = replace(role, layout=new)
    add_rows_output(model, graph, cache, row, replace(role.output_role, layout="BNTH"))
    return cache


def _times_transposed(op: Builder, x: ir.Value, y: ir.Value, name: str) -> ir.Value:
    """[1, K, G, a] times the transpose of [1, K, b, a]: [1, K, G, b]."""
    shape = [*shape_of(x)[:3], shape_of(y)[2]]
    return op.node("BATCH_MATMUL", [x, y], shape, name=name, adjointLhs=False, adjointRhs=True)


def _mask(op: Builder, position: ir.Value | None, S: int) -> ir.Value:
    """The mask [1, 1, 1, S + 1]: row j of the cache is visible if j < `position`, the new row always."""
    if position is None:
        entries = np.asarray([HIDDEN_SCORE] * S + [0.0], np.float32)
        return op.constant(entries.reshape(1, 1, 1, S + 1), "mask")
    assert position.dtype is not None
    shape = [1, 1, 1, S + 1]
    keys = np.asarray([*range(S), -1], position.dtype.numpy()).reshape(shape)
    current = op.reshape(position, [1, 1, 1, 1], name="position")
    is_visible = op.node(
        "LESS", [op.constant(keys, "keys"), current], shape, ir.DataType.BOOL, name="visible"
    )
    visible, hidden = (
        op.constant(score, name, np.float32) for score, name in ((0.0, "shown"), (HIDDEN_SCORE, "hidden"))
    )
    return op.node("SELECT_V2", [is_visible, visible, hidden], shape, ir.DataType.FLOAT, name="mask")
