"""One attention block around a softmax, proven to compute what ATTENTION computes."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import onnx_ir as ir

from o2o.operators.attention import Attention
from o2o.rewriting.attention import parts, proof
from o2o.rewriting.attention.visibility import Visibility
from o2o.rewriting.axes import Factors, matmul_axes
from o2o.rewriting.matchers import fail


@dataclass
class AttentionMatch:
    """A proven attention block.

    Attributes:
        attention: The operands of ATTENTION.
        last: The FULLY_CONNECTED that computes the result.
        zero_mask: The shape of a mask of zeros that ATTENTION needs as operand, or None.
        cache_outputs: Outputs of the graph that are its updated caches, in their layout.
    """

    attention: Attention
    last: ir.Node
    zero_mask: tuple[int, ...] | None = None
    cache_outputs: tuple[ir.Value, ...] = ()


def match_attention(
    softmax: ir.Node, visibility: Visibility, inner: Collection[ir.Graph] = ()
) -> AttentionMatch:
    """Match the attention block around a softmax.

    Args:
        softmax: The SOFTMAX.
        visibility: The proofs of the model's masks, which layers share.
        inner: Graphs that operators run. Their inputs cannot be caches: writes in place would be lost.

    Returns:
        The block.

    Raises:
        MatchFailure: The first condition that fails.
    """
    scores = parts.find_scores(softmax)
    product, weights_path = parts.follow_down(softmax.outputs[0], "the attention weights", "BATCH_MATMUL")
    if product.inputs[0] is not weights_path[-1]:
        fail("the attention weights are not the left operand of their product with v", product.outputs[0])
    last, result_path = parts.follow_down(product.outputs[0], "the attention result", "FULLY_CONNECTED")
    out = parts.find_projection(last.outputs[0], "the output")
    q_value, k_value = scores.matmul.inputs
    v_value = product.inputs[1]
    assert q_value is not None
    assert k_value is not None
    assert v_value is not None

    q_path = parts.follow_up(q_value)
    q_rotation, q = parts.find_rotated(q_path.source, "q")
    k_path = parts.follow_up(k_value)
    k_update, k_new = parts.find_cache_update(k_path.source, inner)
    k_inner = parts.follow_up(k_new)
    k_rotation, k = parts.find_rotated(k_inner.source, "k")
    v_path = parts.follow_up(v_value)
    v_update, v_new = parts.find_cache_update(v_path.source, inner)
    v_inner = parts.follow_up(v_new)
    v = parts.find_projection(v_inner.source, "v")
    if not (q.x is k.x is v.x):
        fail("q, k and v are not projections of one tensor", k.x)
    if (q_rotation is None) != (k_rotation is None):
        fail("one of q and k is rotated, the other is not", q.node.outputs[0])
    if k_update.node is not None and k_inner.scale != 1:
        fail("the keys are scaled before they are cached", k_new)
    if v_path.scale != 1 or v_inner.scale != 1:
        fail("the values are scaled", v_value)

    factors = proof.factors_of(q, k, v, scores, k_update)
    T, H = factors.sizes["T"], factors.sizes["H"]
    scale = scores.scale * q_path.scale * k_path.scale * k_inner.scale
    if not math.isclose(scale, H**-0.5, rel_tol=1e-5):
        fail(f"the scale is {scale:.6g}, not 1/sqrt({H})", scores.matmul.outputs[0])

    q_axes = proof.rotated_axes(factors, q, q_rotation, q_path.layout, "T", "KGH")
    new = Factors({**factors.sizes, "S": T})
    k_axes = proof.rotated_axes(new, k, k_rotation, k_inner.layout, "S", "KH")
    v_axes = new.through(v_inner.layout, proof.projection_axes(new, v, "S", "KH"))
    k_axes = proof.cache_axes(factors, k_update, k_axes, softmax)
    v_axes = proof.cache_axes(factors, v_update, v_axes, product)
    k_axes = factors.through(k_path.layout, k_axes, broadcast="G")
    v_axes = factors.through(v_path.layout, v_axes, broadcast="G")
    scores_axes = matmul_axes(scores.matmul, q_axes, k_axes)
    scores_axes, mask_axes = proof.score_axes(factors, scores, scores_axes)
    if scores_axes[-1] != factors.axes(["S"])[0]:
        fail("the softmax does not go over the keys", softmax.outputs[0])
    weights_axes = factors.through(parts.nodes_of(weights_path), scores_axes)
    y_axes = factors.through(parts.nodes_of(result_path), matmul_axes(product, weights_axes, v_axes))
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
    zero_mask = visibility.set_operands(attention, scores, mask_axes, k_update, v_update, factors, last)
    return AttentionMatch(attention, last, zero_mask, (*k_update.cache_outputs, *v_update.cache_outputs))
