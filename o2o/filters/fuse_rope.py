"""`fuse.rope.py`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from o2o.filters.fusion import Fusion
from o2o.model import Model
from o2o.onnx_fusion.forms import Form
from o2o.rewriting.rope import RopeRule

if TYPE_CHECKING:
    from o2o.onnx_fusion.rule import OnnxRule


class FuseRope(Fusion):
    """Fuse RoPE, rotary position embedding, into ROPE.

        x ----+-------------------- MUL cos --+
              |                               ADD        x, sin, cos -- ROPE
              +-- x[H/2:] - NEG -+            |     =>
              |                CONCAT MUL sin-+
              +-- x[:H/2] -------+

    x is [B, N, T, H]. The tables are [1, 1, T, H]: one row per token, the same for all heads. The halves may
    be sliced by STRIDED_SLICE, SLICE or SPLIT, and negated by NEG or MUL.
    Of a head that is rotated in part, the sliced part is x.
    In ONNX the result is RotaryEmbedding, of opset 23 or of ONNX Runtime (--form ort). Its tables are
    halves of cos and sin, so both halves must be proven to be equal. Each text may have its own tables.
    Left alone: rotation of neighboring pairs (GPT-J, Cohere, GLM); tables that differ by head.
    """

    name = "fuse.rope.py"
    purpose = "Fuse"
    usage_example = "fuse.rope.py < decode.circle > fused.circle"
    input_formats = ("circle", "onnx")
    noun = "rotation"

    def rule(self, model: Model, args: argparse.Namespace) -> RopeRule:
        return RopeRule()

    def onnx_rule(self, form: Form) -> OnnxRule:
        from o2o.onnx_fusion.rotation import OnnxRopeRule

        return OnnxRopeRule(form)


main = FuseRope.main
