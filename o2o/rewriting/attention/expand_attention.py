"""Circle's ATTENTION as its parts: projections, ROPE, cache updates, `o2o.attention`, output projection.

    q, k, v = FULLY_CONNECTED(x, w), split into heads [1, heads, T, H]; with tables, ROPE of q and k
    keys, values = DYNAMIC_UPDATE_SLICE(cache, k or v, position): results are outputs of the graph, too
    result = FULLY_CONNECTED(o2o.attention(q, keys, values, position), wo)

Each lowering then needs only the parts, which other models have as well.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from o2o.contract import role_of
from o2o.errors import ModelError
from o2o.model import Model, shape_of
from o2o.operators.attention import Attention, is_attention
from o2o.operators.core_attention import CoreAttention
from o2o.rewriting.builder import Builder
from o2o.rewriting.cache_outputs import add_rows_output
from o2o.rewriting.matchers import producer_of
from o2o.rewriting.rewire import replace_output


def expand_attentions(model: Model, graph: ir.Graph) -> int:
    """Expand each ATTENTION of a graph, in place.

    Args:
        model: The model of `graph`; its signatures get the updated caches as outputs.
        graph: Changed in place.

    Returns:
        The number of operators expanded.

    Raises:
        ModelError: One updates a cache that is not an input.
    """
    nodes = [node for node in graph if is_attention(node)]
    for node in nodes:
        expand_attention(model, graph, node)
    return len(nodes)


def expand_attention(model: Model, graph: ir.Graph, node: ir.Node) -> None:
    """Replace ATTENTION, [1, T, D] -> [1, T, D], by its parts.

    Args:
        model: The model of `graph`; its signatures get the updated caches as outputs.
        graph: Changed in place.
        node: ATTENTION, as `o2o.operators.reference` defines it.

    Raises:
        ModelError: It updates a cache that is not an input.
    """
    of = Attention.of(node)
    T, N, K, H = of.T, of.N, of.K, of.H
    old = node.outputs[0]
    op = Builder(graph, before=node, prefix=f"{old.name}/")

    def heads(w: ir.Value, count: int, name: str) -> ir.Value:
        """x w' as [1, count, T, H]."""
        y = _linear(op, of.x, w, (1, T, count * H), name)
        return swap_heads(op, op.reshape(y, [1, T, count, H], name=f"{name}_heads"))

    q, k, v = heads(of.wq, N, "q"), heads(of.wk, K, "k"), heads(of.wv, K, "v")
    if of.cos is not None and of.sin is not None:
        cos, sin = (op.reshape(table, [1, 1, T, H], name="table") for table in (of.cos, of.sin))
        q, k = (op.node("ROPE", [x, sin, cos], shape_of(x), name="rotated", mode=0) for x in (q, k))
    position = op.constant([0], "pos", np.int32) if of.pos is None else _first(op, of.pos)
    if of.k_cache is not None and of.v_cache is not None:
        start = _update_start(op, of, position)
        k = _update_cache(model, graph, op, of.k_cache, k, start, of.layout, "key")
        v = _update_cache(model, graph, op, of.v_cache, v, start, of.layout, "value")
    core = CoreAttention(q, k, v, position, H**-0.5, mask=of.mask).build(op.fresh("attended"))
    op.add(core)
    y = op.reshape(core.outputs[0], [1, T, N * H], name="concatenated_heads")
    replace_output(model, old, _linear(op, y, of.wo, shape_of(old), "output"))
    graph.remove(node, safe=True)


def swap_heads(op: Builder, x: ir.Value) -> ir.Value:
    """Swap the head axis and the token axis.

    Args:
        op: Where to insert the node.
        x: [1, a, b, H].

    Returns:
        [1, b, a, H]: a RESHAPE of x where a or b is 1, else a TRANSPOSE.
    """
    one, a, b, H = shape_of(x)
    if 1 in (a, b):
        return op.reshape(x, [one, b, a, H], name="swapped")
    return op.transpose(x, (0, 2, 1, 3), name="swapped")


def _linear(op: Builder, x: ir.Value, w: ir.Value, shape: tuple[int, ...], name: str) -> ir.Value:
    """x w'."""
    return op.node(
        "FULLY_CONNECTED",
        [x, w, None],
        shape,
        name=name,
        keepNumDims=True,
        weightsFormat=0,
        fusedActivationFunction=0,
    )


def _first(op: Builder, positions: ir.Value) -> ir.Value:
    """The first of `positions`, int32 [1]."""
    if positions.dtype != ir.DataType.INT32:
        positions = op.node("CAST", [positions], shape_of(positions), ir.DataType.INT32, name="pos")
    if shape_of(positions) not in ((), (1,)):
        positions = op.reshape(positions, [math.prod(shape_of(positions))])
        positions = op.slice(positions, [0], [1], name="pos")
    return op.reshape(positions, [1])


def _update_start(op: Builder, of: Attention, position: ir.Value) -> ir.Value:
    """The start of the DYNAMIC_UPDATE_SLICE, int32 [4]: the position on the token axis, 0 elsewhere."""
    zeros = [op.constant([0] * count, "zeros", np.int32) for count in (1, 2)]
    before, after = zeros[::-1] if of.layout == "BNTH" else zeros
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
