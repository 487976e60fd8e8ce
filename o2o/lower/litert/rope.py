"""ROPE in TFLite builtins (Su et al., RoFormer, 2021)."""

from __future__ import annotations

import onnx_ir as ir

from o2o.errors import ModelError
from o2o.model import Model, attribute, shape_of
from o2o.rewriting.builder import Builder
from o2o.rewriting.rewire import replace_output


def lower_rope(model: Model, graph: ir.Graph, node: ir.Node) -> None:
    """Insert the arithmetic of ROPE in its place.

    Args:
        model: The model of `graph`.
        graph: Changed in place; `node` stays, without uses.
        node: ROPE of x [B, N, T, H], sin and cos, as `o2o.operators.reference` defines it.

    Raises:
        ModelError: Its mode is GPT_J, which rotates neighbouring elements rather than halves.
    """
    x, sin, cos = node.inputs
    old = node.outputs[0]
    if attribute(node, "mode", 0) != 0:
        raise ModelError(f"ROPE {old.name} rotates neighbours (GPT_J): only GPT_NEOX can be lowered")
    assert x is not None
    assert sin is not None
    assert cos is not None
    replace_output(model, old, rotate(Builder(graph, before=node, prefix=f"{old.name}/"), x, cos, sin))


def rotate(op: Builder, x: ir.Value, cos: ir.Value, sin: ir.Value) -> ir.Value:
    """Build x * cos + concat(-x[..., H/2:], x[..., :H/2]) * sin.

    Args:
        op: Where to insert the nodes.
        x: [..., H].
        cos: A table that broadcasts to x.
        sin: A table that broadcasts to x.

    Returns:
        The rotated x, [..., H].
    """
    shape = shape_of(x)
    half = shape[-1] // 2
    start, size = [0] * (len(shape) - 1), [*shape[:-1], half]
    lower = op.slice(x, [*start, 0], size, name="lower")
    upper = op.slice(x, [*start, half], size, name="upper")
    negative = op.node("NEG", [upper], shape_of(upper))
    swapped = op.node("CONCATENATION", [negative, lower], shape, name="swapped_halves", axis=len(shape) - 1)
    times_cos = op.node("MUL", [x, cos], shape, name="times_cos")
    times_sin = op.node("MUL", [swapped, sin], shape, name="times_sin")
    return op.node("ADD", [times_cos, times_sin], shape, name="rotated")
