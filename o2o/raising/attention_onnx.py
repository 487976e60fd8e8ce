"""ONNX's Attention, opsets 23 to 25."""

from __future__ import annotations

import math

import onnx_ir as ir

from o2o.model import shape_of
from o2o.raising.cache_rows import appended, extended, first_position
from o2o.raising.dot_product import Visibility, additive, attend
from o2o.raising.operation import BOOL, INT32, Operation, Rules


def by_head(of: Operation, x: ir.Value, heads: int) -> ir.Value:
    """Split the features of each token among heads.

    Args:
        of: The node that is raised.
        x: [B, T, heads * H].
        heads: The number of heads.

    Returns:
        [B, heads, T, H].

    Raises:
        NotRaised: The heads do not divide the features.
    """
    B, T, D = shape_of(x)
    if not heads or D % heads:
        of.refuse(f"{heads} heads do not divide {D} features")
    if T == 1:
        return of.reshape(x, [B, heads, T, D // heads])
    return of.transpose(of.reshape(x, [B, T, heads, D // heads]), (0, 2, 1, 3))


def _attention(of: Operation) -> list[ir.Value]:
    """Attention(Q, K, V, attn_mask, past_key, past_value, nonpad_kv_seqlen), with up to four results."""
    q, k, v = (of.operand(index) for index in range(3))
    is_3d = len(shape_of(q)) == 3
    if is_3d:
        heads = [of.get("q_num_heads", 0), *[of.get("kv_num_heads", 0)] * 2]
        q, k, v = (by_head(of, x, count) for x, count in zip((q, k, v), heads, strict=True))
    past = shape_of(of.operand(4))[2] if of.has(4) else 0
    k, v = (
        appended(of, of.operand(index) if of.has(index) else None, new, 2) for index, new in ((4, k), (5, v))
    )
    T, S = shape_of(q)[2], shape_of(k)[2]
    bias = [_bias(of, of.operand(3), S)] if of.has(3) and shape_of(of.operand(3)) else []
    position: int | ir.Value = past
    length, is_valid = None, True
    if of.has(6):
        length = of.cast(of.operand(6), INT32)
        position, is_valid = first_position(of, length, T)
    left, right = of.get("left_window_size", -1), of.get("right_window_size", -1)
    is_causal = bool(of.get("is_causal", 0))
    visibility = Visibility(
        position,
        is_causal,
        left if left >= 0 else None,
        right if right >= 0 else None,
        None if is_causal else length,  # a causal query sees no key behind the valid ones
        may_be_empty=bool(bias) or max(left, right) >= 0 or not (is_valid and (is_causal or length is None)),
    )
    scale = of.get("scale") or 1 / math.sqrt(shape_of(q)[3])
    wanted = of.get("qk_matmul_output_mode", 0) if _is_used(of.node, 3) else None
    result = attend(of, q, k, v, scale, visibility, bias, of.get("softcap", 0.0), scores=wanted)
    B, _, N, H = shape_of(result.y)
    y = of.reshape(result.y, [B, T, N * H]) if is_3d else of.transpose(result.y, (0, 2, 1, 3))
    return [y, k, v, *([result.scores] if result.scores is not None else [])]


def _is_used(node: ir.Node, index: int) -> bool:
    """Whether a node has an output of that number."""
    return index < len(node.outputs) and node.outputs[index].name not in (None, "")


def _bias(of: Operation, mask: ir.Value, S: int) -> ir.Value:
    """A mask as numbers to add, for all S keys: those behind a shorter mask are hidden."""
    axis = len(shape_of(mask)) - 1
    if mask.dtype == BOOL:
        mask = additive(of, mask)
    return extended(of, mask, S, axis, -math.inf) if shape_of(mask)[axis] < S else mask


RULES: Rules = {"Attention": _attention}
"""Rules of ONNX's own domain."""
