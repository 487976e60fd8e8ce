"""Rotary embeddings in TFLite builtins."""

from __future__ import annotations

import onnx_ir as ir

from o2o.model import shape_of
from o2o.rewriting.builder import Builder


def rotate(op: Builder, x: ir.Value, cos: ir.Value, sin: ir.Value) -> ir.Value:
    """x [.., H] rotated by tables that broadcast to it (`o2o.operators.reference`, ROPE)."""
    shape = shape_of(x)
    half = shape[-1] // 2
    start, size = [0] * (len(shape) - 1), [*shape[:-1], half]
    lower = op.slice(x, [*start, 0], size, name="lower")
    upper = op.slice(x, [*start, half], size, name="upper")
    negative = op.node("NEG", [upper], shape_of(upper))
    turned = op.node("CONCATENATION", [negative, lower], shape, name="turned", axis=len(shape) - 1)
    straight = op.node("MUL", [x, cos], shape, name="times_cos")
    return op.node(
        "ADD", [straight, op.node("MUL", [turned, sin], shape, name="times_sin")], shape, name="rotated"
    )
