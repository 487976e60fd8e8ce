"""The table of rules: for each domain and operator of ONNX, how it is raised."""

from __future__ import annotations

import onnx_ir as ir

from o2o.raising import (
    activations_ort,
    arithmetic,
    attention_onnx,
    attention_ort,
    block_quantized,
    cache_rows,
    comparisons,
    convolution,
    generators,
    indexing,
    layout,
    normalization,
    normalization_ort,
    pooling,
    products,
    quantized,
    reductions,
    resizing,
    rotation,
    scatter,
)
from o2o.raising.operation import Rule, Rules

ONNX: Rules = {
    **arithmetic.RULES,
    **comparisons.RULES,
    **layout.RULES,
    **products.RULES,
    **reductions.RULES,
    **indexing.RULES,
    **scatter.RULES,
    **convolution.RULES,
    **pooling.RULES,
    **resizing.RULES,
    **generators.RULES,
    **normalization.RULES,
    **rotation.RULES,
    **cache_rows.RULES,
    **attention_onnx.RULES,
    **quantized.RULES,
}
"""Operators of ONNX's own domain."""

ORT: Rules = {
    **activations_ort.ORT_RULES,
    **products.ORT_RULES,
    **normalization_ort.ORT_RULES,
    **rotation.ORT_RULES,
    **attention_ort.ORT_RULES,
    **block_quantized.ORT_RULES,
    **quantized.ORT_RULES,
}
"""Operators of com.microsoft, which ONNX Runtime adds."""

RULES: dict[str, Rules] = {"": ONNX, "ai.onnx": ONNX, "com.microsoft": ORT}
"""The rules by domain."""


def rule_of(node: ir.Node) -> Rule | None:
    """Return the rule of a node.

    Args:
        node: An ONNX node.

    Returns:
        Its rule; None if there is none.
    """
    return RULES.get(node.domain, {}).get(node.op_type)
