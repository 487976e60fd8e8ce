"""One attention block around its core, proven to compute what ATTENTION computes."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from o2o.operators.attention import Attention
from o2o.operators.core_attention import CoreAttention
from o2o.rewriting.attention import parts, proof
from o2o.rewriting.attention.scores import follow_down, nodes_of
from o2o.rewriting.attention.sdpa import by_head
from o2o.rewriting.attention.visibility import Visibility
from o2o.rewriting.axes import Axes, Factors, trace_layout
from o2o.rewriting.matchers import fail


@dataclass
class AttentionMatch:
    """A proven attention block.

    Attributes:
        attention: The operands of ATTENTION.
        last: The FULLY_CONNECTED that computes the result.
        mask: A constant mask that ATTENTION needs as operand, or None.
        cache_outputs: Outputs of the graph that are its updated caches, in their layout.
    """

    attention: Attention
    last: ir.Node
    mask: np.ndarray | None = None
    cache_outputs: tuple[ir.Value, ...] = ()


def match_attention(
    node: ir.Node, visibility: Visibility, inner: Collection[ir.Graph] = ()
) -> AttentionMatch:
    """Match the attention block around its core.

    Args:
        node: The core, `o2o.attention`.
        visibility: The proofs of the model's masks, which layers share.
        inner: Graphs that operators run. Their inputs cannot be caches: writes in place would be lost.

    Returns:
        The block.

    Raises:
        MatchFailure: The first condition that fails.
    """
    core = CoreAttention.of(node)
    extras = [extra for extra in core.extras if extra != "a mask"]
    if extras:
        fail(f"Circle's ATTENTION has no operand for {' and '.join(extras)}", node.outputs[0])
    if not math.isclose(core.scale, core.H**-0.5, rel_tol=1e-5):
        fail(f"the scale is {core.scale:.6g}, not 1/sqrt({core.H})", node.outputs[0])
    last, result_path = follow_down(node.outputs[0], "the attention result", "FULLY_CONNECTED")
    out = parts.find_projection(last.outputs[0], "the output")

    q_source, q_layout = trace_layout(core.q)
    q_rotation, q = parts.find_rotated(q_source, "q")
    k_source, k_layout = trace_layout(core.k)
    k_update, k_new = parts.find_cache_update(k_source, inner)
    k_source, k_inner = trace_layout(k_new)
    k_rotation, k = parts.find_rotated(k_source, "k")
    v_source, v_layout = trace_layout(core.v)
    v_update, v_new = parts.find_cache_update(v_source, inner)
    v_source, v_inner = trace_layout(v_new)
    v = parts.find_projection(v_source, "v")
    if not (q.x is k.x is v.x):
        fail("q, k and v are not projections of one tensor", k.x)
    if (q_rotation is None) != (k_rotation is None):
        fail("one of q and k is rotated, the other is not", q.node.outputs[0])

    factors = proof.factors_of(core, q, k, v)
    T, H = core.T, core.H
    layouts = by_head(factors)
    q_axes = proof.rotated_axes(factors, q, q_rotation, q_layout, "T", "KGH")
    new = Factors({**factors.sizes, "S": T})
    k_axes = proof.rotated_axes(new, k, k_rotation, k_inner, "S", "KH")
    v_axes = new.through(v_inner, proof.projection_axes(new, v, "S", "KH"))
    k_axes = factors.through(k_layout, proof.cache_axes(factors, k_update, k_axes, node))
    v_axes = factors.through(v_layout, proof.cache_axes(factors, v_update, v_axes, node))
    for axes, wanted, value in (
        (q_axes, layouts.q, core.q),
        (k_axes, layouts.kv, core.k),
        (v_axes, layouts.kv, core.v),
    ):
        _check_axes(axes, wanted, value)
    y_axes = factors.through(nodes_of(result_path), layouts.result)
    heads = out.node.inputs[0]
    assert heads is not None
    if y_axes != proof.flat_axes(factors, heads, "T", "KGH"):
        fail("the heads are not concatenated in order before the output projection", heads)

    cos, sin = proof.shared_tables(q_rotation, k_rotation, T, H)
    attention = Attention(q.x, q.w, k.w, v.w, out.w, cos, sin)
    attention.k_cache, attention.v_cache = k_update.past, v_update.past
    if attention.k_cache is None and cos is None:
        fail("without cache and rotation, ATTENTION cannot infer the head dimension", q.node.outputs[0])
    proof.check_layouts(attention, k_update, v_update)
    mask = visibility.set_operands(attention, core, k_update, v_update, last)
    return AttentionMatch(attention, last, mask, (*k_update.cache_outputs, *v_update.cache_outputs))


def _check_axes(axes: Axes, wanted: Axes, value: ir.Value) -> None:
    if axes != wanted:
        fail("its heads are not those of its projection, in order", value)
