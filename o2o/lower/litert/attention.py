"""ATTENTION and `o2o.attention` in TFLite builtins.

ATTENTION becomes its projections, a DYNAMIC_UPDATE_SLICE into each cache, and the builtins of
`o2o.lower.litert.sdpa` or `flash_attention`.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from o2o.contract import role_of
from o2o.errors import ModelError
from o2o.formats.tensors import constant_array
from o2o.lower.cache_outputs import add_rows_output
from o2o.lower.litert.flash_attention import flash_attention
from o2o.lower.litert.sdpa import scaled_dot_product_attention, swap_heads
from o2o.lower.rotate_halves import rotate_halves
from o2o.model import Model, shape_of
from o2o.operators.attention import Attention
from o2o.operators.core_attention import CoreAttention, FlashBlockSizes, adaptive_blocks
from o2o.rewriting.builder import Builder
from o2o.rewriting.matchers import producer_of
from o2o.rewriting.rewire import replace_output

FlashBlocks = FlashBlockSizes | bool | None
"""Blocks of attention: their sizes, True for the usual sizes, False for none, None for the default.

The default: the sizes in the options of `o2o.attention`; for ATTENTION, blocks where they are faster.
"""


def lower_attention(model: Model, graph: ir.Graph, node: ir.Node, flash: FlashBlocks = None) -> None:
    """Insert builtins in the place of ATTENTION, [1, T, D] -> [1, T, D].

    Args:
        model: The model of `graph`.
        graph: Changed in place; `node` stays, without uses.
        node: ATTENTION, as `o2o.operators.reference` defines it.
        flash: Blocks to compute in, where the attention is causal.

    Raises:
        ModelError: It updates a cache that is not an input, or is also an output.
    """
    of = Attention.of(node)
    T, N, K, H = of.T, of.N, of.K, of.H
    old = node.outputs[0]
    op = Builder(graph, before=node, prefix=f"{old.name}/")

    def linear(x: ir.Value, w: ir.Value, shape: tuple[int, ...], name: str) -> ir.Value:
        return op.node(
            "FULLY_CONNECTED",
            [x, w, None],
            shape,
            name=name,
            keepNumDims=True,
            weightsFormat=0,
            fusedActivationFunction=0,
        )

    def heads(w: ir.Value, count: int, name: str) -> ir.Value:
        """x w' as [1, count, T, H]."""
        y = linear(of.x, w, (1, T, count * H), name)
        return swap_heads(op, op.reshape(y, [1, T, count, H], name=f"{name}_heads"))

    q, k, v = heads(of.wq, N, "q"), heads(of.wk, K, "k"), heads(of.wv, K, "v")
    if of.cos is not None and of.sin is not None:
        cos, sin = (op.reshape(table, [1, 1, T, H], name="table") for table in (of.cos, of.sin))
        q, k = rotate_halves(op, q, cos, sin), rotate_halves(op, k, cos, sin)
    if of.k_cache is not None and of.v_cache is not None:
        start = _update_start(op, of)
        k = _update_cache(model, graph, op, of.k_cache, k, start, of.layout, "key")
        v = _update_cache(model, graph, op, of.v_cache, v, start, of.layout, "value")
    position = None if of.pos is None else _first(op, of.pos)
    blocks = _blocks(flash, T, of.S)
    if of.mask is not None or blocks is None:
        y = scaled_dot_product_attention(op, q, k, v, H**-0.5, position, of.mask)
    else:
        y = flash_attention(model, op, q, k, v, H**-0.5, position, blocks)
    y = op.reshape(y, [1, T, N * H], name="concatenated_heads")
    replace_output(model, old, linear(y, of.wo, shape_of(old), "output"))


def lower_core_attention(model: Model, graph: ir.Graph, node: ir.Node, flash: FlashBlocks = None) -> None:
    """Insert builtins in the place of `o2o.attention`.

    Args:
        model: The model of `graph`.
        graph: Changed in place; `node` stays, without uses.
        node: Attention of q [1, N, T, H] to k and v [1, K, S, H] from a position on, giving [1, T, N, H].
        flash: Blocks to compute in; None for the sizes in the operator's options.
    """
    of = CoreAttention.of(node)
    if of.extras:
        raise ModelError(f"{model.locate(graph, node)} has {', '.join(of.extras)}")
    q, k, v, position, scale = of.q, of.k, of.v, of.position, of.scale
    blocks = of.blocks if flash is None else _blocks(flash, of.T, of.S)
    old = node.outputs[0]
    op = Builder(graph, before=node, prefix=f"{old.name}/")
    constant = constant_array(position)
    start = None if constant is not None and not constant.any() else _first(op, position)
    if blocks is None:
        y = scaled_dot_product_attention(op, q, k, v, scale, start)
    else:
        y = flash_attention(model, op, q, k, v, scale, start, blocks)
    replace_output(model, old, y)


def _blocks(flash: FlashBlocks, T: int, S: int) -> FlashBlockSizes | None:
    """The blocks for T queries and S keys; None for all at once."""
    if flash is None:  # where it is faster: `bench/flash.py`
        return adaptive_blocks(T) if T > 1 and adaptive_blocks(T).kv < S else None
    return adaptive_blocks(T) if flash is True else flash or None


def _first(op: Builder, positions: ir.Value) -> ir.Value:
    """The first of `positions`, int32 [1]."""
    if positions.dtype != ir.DataType.INT32:
        positions = op.node("CAST", [positions], shape_of(positions), ir.DataType.INT32, name="pos")
    if shape_of(positions) not in ((), (1,)):
        positions = op.reshape(positions, [math.prod(shape_of(positions))])
        positions = op.slice(positions, [0], [1], name="pos")
    return op.reshape(positions, [1])


def _update_start(op: Builder, of: Attention) -> ir.Value:
    """The start of the DYNAMIC_UPDATE_SLICE, int32 [4]: the position on the token axis, 0 elsewhere."""
    zeros = [op.constant([0] * count, "zeros", np.int32) for count in (1, 2)]
    before, after = zeros[::-1] if of.layout == "BNTH" else zeros
    position = op.constant([0], "pos", np.int32) if of.pos is None else _first(op, of.pos)
    return op.node("CONCATENATION", [before, position, after], [4], name="start", axis=0)


def _update_cache(
    model: Model,
    graph: ir.Graph,
    op: Builder,
    cache: ir.Value,
    new: ir.Value,
    start: ir.Value,
    layout: str,
    kind: str,
) -> ir.Value:
    """Write `new` [1, K, T, H] into `cache` and make the result an output; all its rows as [1, K, S, H]."""
    if layout == "BTNH":
        new = swap_heads(op, new)
    updated = op.node("DYNAMIC_UPDATE_SLICE", [cache, new, start], shape_of(cache), name=f"{kind}s")
    _output_cache(model, graph, cache, updated)
    others = [use for use in cache.uses() if use.node not in (op.before, updated.producer())]
    if others:
        nodes = list(graph)
        later = set(nodes[nodes.index(op.before) + 1 :])  # type: ignore[arg-type]
        for use in others:
            if use.node in later:  # it reads the cache after the update
                use.node.replace_input_with(use.idx, updated)
    return updated if layout == "BNTH" else op.transpose(updated, (0, 2, 1, 3), name=f"{kind}s_by_head")


def _output_cache(model: Model, graph: ir.Graph, cache: ir.Value, updated: ir.Value) -> None:
    """Make the updated cache an output; it replaces an output that is a copy of the same update."""
    label = model.label(graph)
    if not cache.is_graph_input():
        raise ModelError(f"ATTENTION updates {cache.name} in place, which is not an input of {label}")
    if cache.is_graph_output():
        raise ModelError(f"ATTENTION updates {cache.name} in place, which is also an output of {label}")
    role = role_of(cache)
    if role is not None:
        updated.meta["role"] = role.output_role
        for value in graph.outputs:
            node = producer_of(value, "DYNAMIC_UPDATE_SLICE")
            is_same = node is not None and node.inputs[0] is cache and role_of(value) == role.output_role
            if is_same and not value.uses():
                replace_output(model, value, updated)
                return
    add_rows_output(model, graph, cache, updated, role.output_role if role is not None else None)
