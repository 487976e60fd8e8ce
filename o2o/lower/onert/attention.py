"""ATTENTION of one token in operators that onert has, without writing into its caches.

Rows of the cache below `position` hold keys and values; the new ones are attended to beside them:

    scores  = [q k_cache' | q k'] + mask              [1, K, G, S + 1]
    weights = softmax(scores / sqrt(H)) = [w_cache | w]
    result  = w_cache v_cache + w v

so that no cache is copied. Value caches are turned to [1, K, H, S] (BNHT): onert's BATCH_MATMUL transposes a
right operand that is not adjoint, at every step, which takes four times as long as the product.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from o2o.contract import Layout, Role, Turned, role_of
from o2o.errors import ModelError
from o2o.formats.dialects import called
from o2o.lower.onert.rope import rotate_one
from o2o.model import Model, is_dynamic, shape_of
from o2o.operators.attention import Attention
from o2o.operators.masks import HIDDEN_SCORE
from o2o.rewriting.builder import Builder, fresh_name
from o2o.rewriting.rewire import replace_output


def legalize_attention(model: Model, graph: ir.Graph, node: ir.Node) -> None:
    """[1, 1, D] -> [1, 1, D]; see `o2o.operators.reference` for what is spelled here."""
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
    layout = of.layout  # before they are turned
    keys = _cache(model, graph, of.k_cache, layout, "BNTH", k)
    values = _cache(model, graph, of.v_cache, layout, "BNHT", v)

    q = op.reshape(q, [1, K, G, H], name="groups")
    scores = [_times(op, q, rows, "scores") for rows in (keys, k)]
    joined = op.node("CONCATENATION", scores, [1, K, G, S + 1], name="all_scores", axis=3)
    joined = op.node("ADD", [joined, _mask(op, of.pos, S)], [1, K, G, S + 1], name="masked")
    weights = op.node("SOFTMAX", [joined], [1, K, G, S + 1], name="weights", beta=H**-0.5)
    old_weights = op.slice(weights, [0, 0, 0, 0], [1, K, G, S], name="cache_weights")
    new_weight = op.slice(weights, [0, 0, 0, S], [1, K, G, 1], name="new_weight")
    mixed = _times(op, old_weights, values, "mixed")
    added = _times(op, new_weight, op.reshape(v, [1, K, H, 1], name="column"), "added")
    y = op.reshape(op.node("ADD", [mixed, added], [1, K, G, H], name="heads"), [1, N * H], name="joined")
    y = op.node("FULLY_CONNECTED", [y, of.wo, None], [1, shape_of(old)[-1]], name="output")
    replace_output(model, old, op.reshape(y, shape_of(old), name="output_row"))
    graph.remove(node, safe=True)


def _check(model: Model, graph: ir.Graph, node: ir.Node, of: Attention) -> None:
    """Raises ModelError for what is not one step of decoding."""
    where = called(model, graph, node)
    if of.k_cache is None or of.v_cache is None:
        raise ModelError(f"{where} has no caches: onert runs decode only")
    if of.mask is not None:
        raise ModelError(f"{where} has a mask: only causal attention is spelled for onert")
    for value in node.inputs:
        if value is not None and is_dynamic(value):
            raise ModelError(f"{where}: {value.name} has no fixed shape")
    if of.T != 1:
        raise ModelError(f"{where} takes {of.T} tokens: onert runs decode only, one token at a time")
    for cache in (of.k_cache, of.v_cache):
        if not cache.is_graph_input() or cache.is_graph_output():
            raise ModelError(f"{where}: its cache {cache.name} is no input, or an output too")
        if len(cache.uses()) > 1:
            raise ModelError(f"{where}: its cache {cache.name} is used elsewhere, too")
        if role_of(cache) is None:
            raise ModelError(
                f"{where}: the o2o.contract says nothing of its cache {cache.name}, so nobody could feed it"
            )


def _cache(
    model: Model, graph: ir.Graph, cache: ir.Value, old: Layout, new: Layout | Turned, row: ir.Value
) -> ir.Value:
    """The input `cache` in another layout, while its new `row` [1, K, 1, H] is given out."""
    role = role_of(cache)
    assert role is not None
    cache.shape = ir.Shape([shape_of(cache)[old.index(axis)] for axis in new])
    cache.meta["role"] = replace(role, layout=new)
    kind = role.kind.removesuffix("_cache")
    give_out(model, graph, cache, row, Role(kind, role.layer, "BNTH"))  # type: ignore[arg-type]
    return cache


def give_out(model: Model, graph: ir.Graph, cache: ir.Value, row: ir.Value, role: Role) -> None:
    """Make `row` an output: the new keys or values of `cache`."""
    stem = cache.name or role.kind
    name = stem.replace("past_", "present_", 1) if stem.startswith("past_") else f"{stem}_out"
    public = {name for signature in model.signatures for name in signature.outputs}
    row.name = fresh_name(graph, name)
    while row.name in public:
        row.name = fresh_name(graph, name)
    row.meta["role"] = role
    graph.outputs.append(row)
    for signature in model.signatures_of(graph):
        signature.outputs[row.name] = row


def _times(op: Builder, rows: ir.Value, matrix: ir.Value, name: str) -> ir.Value:
    """[1, K, G, a] times [1, K, b, a]': [1, K, G, b]."""
    shape = [*shape_of(rows)[:3], shape_of(matrix)[2]]
    return op.node("BATCH_MATMUL", [rows, matrix], shape, name=name, adjointLhs=False, adjointRhs=True)


def _mask(op: Builder, position: ir.Value | None, S: int) -> ir.Value:
    """What is added to scores [.., S + 1]: row j of the cache is visible below `position`, the new one is
    always."""
    if position is None:
        hidden = [HIDDEN_SCORE] * S + [0.0]
        return op.constant(np.asarray(hidden, np.float32).reshape(1, 1, 1, S + 1), "mask")
    assert position.dtype is not None
    shape = [1, 1, 1, S + 1]
    keys = np.asarray([*range(S), -1], position.dtype.numpy()).reshape(shape)
    now = op.reshape(position, [1, 1, 1, 1], name="position")
    visible = op.node("LESS", [op.constant(keys, "keys"), now], shape, ir.DataType.BOOL, name="visible")
    shown, hidden_ = op.constant(0.0, "shown", np.float32), op.constant(HIDDEN_SCORE, "hidden", np.float32)
    return op.node("SELECT_V2", [visible, shown, hidden_], shape, ir.DataType.FLOAT, name="mask")
