"""Rotary embeddings in TFLite builtins."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from o2o.model import shape_of
from o2o.rewriting.build import Builder


def rotate(op: Builder, x: ir.Value, cos: ir.Value, sin: ir.Value) -> ir.Value:
    """x [.., H] rotated by tables that broadcast to it (`o2o.reference`, ROPE)."""
    shape = shape_of(x)
    half = shape[-1] // 2
    lower_, upper = (
        op.node(
            "SLICE",
            [
                x,
                op.constant([0] * (len(shape) - 1) + [begin], f"{name}_begin", np.int32),
                op.constant([*shape[:-1], half], "half", np.int32),
            ],
            [*shape[:-1], half],
            name=name,
        )
        for name, begin in (("lower", 0), ("upper", half))
    )
    negative = op.node("NEG", [upper], shape_of(upper))
    turned = op.node("CONCATENATION", [negative, lower_], shape, name="turned", axis=len(shape) - 1)
    straight = op.node("MUL", [x, cos], shape, name="times_cos")
    return op.node(
        "ADD", [straight, op.node("MUL", [turned, sin], shape, name="times_sin")], shape, name="rotated"
    )
