"""Rotation of the two halves of each vector by RoPE tables, as elementwise arithmetic."""

from __future__ import annotations

import onnx_ir as ir

from o2o.model import shape_of
from o2o.rewriting.builder import Builder


def rotate_halves(op: Builder, x: ir.Value, cos: ir.Value, sin: ir.Value) -> ir.Value:
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
