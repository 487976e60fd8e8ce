"""Fusion of decomposed RMSNorm and RoPE into Circle operators, before the ONNX lowering."""

from __future__ import annotations

import onnx_ir as ir

from o2o.model import Model
from o2o.rewriting.rewrite_rule import apply_rule
from o2o.rewriting.rms_norm import RmsNormRule
from o2o.rewriting.rope import RopeRule


def fuse_norms_and_rope(model: Model, graph: ir.Graph) -> None:
    """Fuse RMS_NORM and ROPE wherever their rules match.

    Args:
        model: The model of `graph`.
        graph: Changed in place.
    """
    for rule in (RmsNormRule(), RopeRule()):
        apply_rule(model, graph, rule)
