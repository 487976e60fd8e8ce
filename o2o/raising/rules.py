"""The table of rules: for each domain and operator of ONNX, how it is raised."""

from __future__ import annotations

import onnx_ir as ir

from o2o.raising import (
    arithmetic,
    comparisons,
    generators,
    indexing,
    layout,
    normalization,
    products,
    reductions,
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
    **generators.RULES,
    **normalization.RULES,
}
"""Operators of ONNX's own domain."""

RULES: dict[str, Rules] = {"": ONNX, "ai.onnx": ONNX}
"""The rules by domain."""


def rule_of(node: ir.Node) -> Rule | None:
    """Return the rule of a node.

    Args:
        node: An ONNX node.

    Returns:
        Its rule; None if there is none.
    """
    return RULES.get(node.domain, {}).get(node.op_type)
