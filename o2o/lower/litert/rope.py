"""ROPE in TFLite builtins (Su et al., RoFormer, 2021)."""

from __future__ import annotations

import onnx_ir as ir

from o2o.errors import ModelError
from o2o.lower.rotate_halves import rotate_halves
from o2o.model import Model, attribute
from o2o.rewriting.builder import Builder
from o2o.rewriting.rewire import replace_output


def lower_rope(model: Model, graph: ir.Graph, node: ir.Node) -> None:
    """Insert the arithmetic of ROPE in its place.

    Args:
        model: The model of `graph`.
        graph: Changed in place; `node` stays, without uses.
        node: ROPE of x [B, N, T, H], sin and cos, as `o2o.operators.reference` defines it.

    Raises:
        ModelError: Its mode is GPT_J, which rotates neighboring elements rather than halves.
    """
    x, sin, cos = node.inputs
    old = node.outputs[0]
    if attribute(node, "mode", 0) != 0:
        raise ModelError(f"ROPE {old.name} rotates neighbors (GPT_J): only GPT_NEOX can be lowered")
    assert x is not None
    assert sin is not None
    assert cos is not None
    replace_output(model, old, rotate_halves(Builder(graph, before=node, prefix=f"{old.name}/"), x, cos, sin))
