"""ATTENTION in TFLite builtins: projections, a DYNAMIC_UPDATE_SLICE into each cache, and what
`o2o.lower.litert.sdpa` makes of queries, keys and values."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from o2o.contract import role_of
from o2o.errors import ModelError
from o2o.formats.tensors import numbers
from o2o.lower.litert.flash_attention import flash_attention
from o2o.lower.litert.rope import rotate
from o2o.lower.litert.sdpa import dot_product_attention, swap_heads
from o2o.model import Model, shape_of
from o2o.operators.attention import Attention
from o2o.operators.causal_attention import Blocks, adaptive_blocks, operands, unpack
from o2o.rewriting.builder import Builder, fresh_name
from o2o.rewriting.matchers import producer_of
from o2o.rewriting.rewire import replace_output

Flash = Blocks | bool | None
"""Whether attention is computed in blocks, and in which: True for those that are usual for as many queries,
None for what the operator says, or what is best."""


def lower_attention(model: Model, graph: ir.Graph, node: ir.Node, flash: Flash = None) -> None:
    """[1, T, D] -> [1, T, D]; see `o2o.operators.reference` for what is spelled here."""
    of = Attention.of(node)
    T, N, K, H = of.T, of.N, of.K, of.H
    old = node.outputs[0]
    op = Builder(graph, before=node, prefix=f"{old.name}/")

    def heads(w: ir.Value, count: int, name: str) -> ir.Value:
        """x w' as [1, T, count, H]."""
        y = op.node(
            "FULLY_CONNECTED",
            [of.x, w, None],
            [1, T, count * H],
            name=name,
            keepNumDims=True,
            weightsFormat=0,
            fusedActivationFunction=0,
        )
        return op.reshape(y, [1, T, count, H], name=f"{name}_heads")

    q, k, v = heads(of.wq, N, "q"), heads(of.wk, K, "k"), heads(of.wv, K, "v")
    q, k, v = (swap_heads(op, y) for y in (q, k, v))  # [1, heads, T, H]
    if of.cos is not None and of.sin is not None:
        cos, sin = (op.reshape(table, [1, 1, T, H], name="table") for table in (of.cos, of.sin))
        q, k = rotate(op, q, cos, sin), rotate(op, k, cos, sin)
    if of.k_cache is not None and of.v_cache is not None:
        start = _start(op, of)
        k = _update(model, graph, op, of.k_cache, k, start, of.layout, "key")
        v = _update(model, graph, op, of.v_cache, v, start, of.layout, "value")
    blocks = _blocks(flash, T, of.S)
    if of.mask is not None or blocks is None:
        y = dot_product_attention(op, q, k, v, H**-0.5, _position(op, of), of.mask)
    else:
        y = flash_attention(model, op, q, k, v, H**-0.5, _position(op, of), blocks)
    y = op.reshape(y, [1, T, N * H], name="joined")
    new = op.node(
        "FULLY_CONNECTED",
        [y, of.wo, None],
        shape_of(old),
        name="output",
        keepNumDims=True,
        weightsFormat=0,
        fusedActivationFunction=0,
    )
    replace_output(model, old, new)


def _blocks(flash: Flash, T: int, S: int) -> Blocks | None:
    """The blocks to compute T queries and S keys in; None for all at a time."""
    if flash is None:  # where it pays: `bench/flash.py`
        return adaptive_blocks(T) if T > 1 and adaptive_blocks(T).kv < S else None
    return adaptive_blocks(T) if flash is True else flash or None


def lower_causal_attention(model: Model, graph: ir.Graph, node: ir.Node, flash: Flash = None) -> None:
    """`o2o.causal_attention`: [1, N, T, H], [1, K, S, H], [1, K, S, H], position -> [1, T, N, H]."""
    q, k, v, position = operands(node)
    scale, told = unpack(node)
    blocks = told if flash is None else _blocks(flash, shape_of(q)[2], shape_of(k)[2])
    old = node.outputs[0]
    op = Builder(graph, before=node, prefix=f"{old.name}/")
    first = numbers(position)
    start = None if first is not None and not first.any() else _first(op, position)
    if blocks is None:
        y = dot_product_attention(op, q, k, v, scale, start)
    else:
        y = flash_attention(model, op, q, k, v, scale, start, blocks)
    replace_output(model, old, y)


def _position(op: Builder, of: Attention) -> ir.Value | None:
    """The position of the first token, int32 [1]; None when that is 0."""
    return None if of.pos is None else _first(op, of.pos)


def _first(op: Builder, positions: ir.Value) -> ir.Value:
    """The first of `positions`, int32 [1]."""
    if positions.dtype != ir.DataType.INT32:
        positions = op.node("CAST", [positions], shape_of(positions), ir.DataType.INT32, name="pos")
    if shape_of(positions) not in ((), (1,)):
        positions = op.reshape(positions, [math.prod(shape_of(positions))])
        positions = op.slice(positions, [0], [1], name="pos")
    return op.reshape(positions, [1])


def _start(op: Builder, of: Attention) -> ir.Value:
    """Where DYNAMIC_UPDATE_SLICE writes, int32 [4]: the position on the token axis, 0 elsewhere."""
    zeros = [op.constant([0] * count, "zeros", np.int32) for count in (1, 2)]
    before, after = zeros[::-1] if of.layout == "BNTH" else zeros
    position = _position(op, of) or op.constant([0], "pos", np.int32)
    return op.node("CONCATENATION", [before, position, after], [4], name="start", axis=0)


def _update(
    model: Model,
    graph: ir.Graph,
    op: Builder,
    cache: ir.Value,
    new: ir.Value,
    start: ir.Value,
    layout: str,
    kind: str,
) -> ir.Value:
    """Write `new` [1, K, T, H] into `cache` and give the cache out; all its rows as [1, K, S, H]."""
    if layout == "BTNH":
        new = swap_heads(op, new)
    updated = op.node("DYNAMIC_UPDATE_SLICE", [cache, new, start], shape_of(cache), name=f"{kind}s")
    _give_out(model, graph, cache, updated, kind)
    others = [use for use in cache.uses() if use.node not in (op.before, updated.producer())]
    if others:
        nodes = list(graph)
        behind = set(nodes[nodes.index(op.before) + 1 :])  # type: ignore[arg-type]
        for use in others:
            if use.node in behind:  # it sees what was written
                use.node.replace_input_with(use.idx, updated)
    return updated if layout == "BNTH" else op.transpose(updated, (0, 2, 1, 3), name=f"{kind}s_by_head")


def _give_out(model: Model, graph: ir.Graph, cache: ir.Value, updated: ir.Value, kind: str) -> None:
    """Make the updated cache an output, in the place of one that is the same by its role."""
    if not cache.is_graph_input():
        raise ModelError(f"ATTENTION writes {cache.name} in place, which is no input of {model.label(graph)}")
    if cache.is_graph_output():
        raise ModelError(f"ATTENTION writes {cache.name} in place, which {model.label(graph)} also gives out")
    told = role_of(cache)
    if told is not None:
        role = replace(told, kind=told.kind.removesuffix("_cache"))  # type: ignore[arg-type]
        updated.meta["role"] = role
        for value in graph.outputs:
            node = producer_of(value, "DYNAMIC_UPDATE_SLICE")
            if role_of(value) == role and node is not None and node.inputs[0] is cache and not value.uses():
                replace_output(model, value, updated)
                return
    stem = cache.name or kind
    name = stem.replace("past_", "present_", 1) if stem.startswith("past_") else f"{stem}_out"
    public = {name for signature in model.signatures_of(graph) for name in signature.outputs}
    updated.name = fresh_name(graph, name)
    while updated.name in public:
        updated.name = fresh_name(graph, name)
    graph.outputs.append(updated)
    for signature in model.signatures_of(graph):
        signature.outputs[updated.name] = updated
