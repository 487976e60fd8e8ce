"""`fuse.rms_norm.py`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from o2o.filters.fusion import Fusion
from o2o.model import Model
from o2o.onnx_fusion.forms import Form
from o2o.rewriting.rms_norm import RmsNormRule

if TYPE_CHECKING:
    from o2o.onnx_fusion.rule import OnnxRule


class FuseRmsNorm(Fusion):
    """Fuse RMSNorm, root-mean-square normalization, into RMS_NORM.

        x -+- square - MEAN - ADD eps - RSQRT -+            x, w -- RMS_NORM (epsilon)
           |                                   MUL   =>
           +-----------------------------------+ - MUL w

    The square may be MUL(x, x), SQUARE or POW(x, 2). The root may be RSQRT, or SQRT and a division. The mean
    goes over the last axis D (Zhang and Sennrich 2019). The weight is a constant [D], or is computed from
    constants, as Gemma's 1 + w. If the weights are still in a checkpoint, the sum is computed when they are
    bound. A normalized tensor without such a weight, or with other uses, becomes RMS_NORM with a weight of
    ones.
    In ONNX the result is RMSNormalization, with any weight [D], or SimplifiedLayerNormalization (--form ort).
    A model of an older opset is raised to 23 where each of its operators means the same there.
    Left alone: other axes, a mean that is subtracted (LayerNorm).
    """

    name = "fuse.rms_norm.py"
    purpose = "Fuse"
    usage_example = "fuse.rms_norm.py < decode.circle > fused.circle"
    input_formats = ("circle", "onnx")
    noun = "normalization"

    def rule(self, model: Model, args: argparse.Namespace) -> RmsNormRule:
        return RmsNormRule()

    def onnx_rule(self, form: Form) -> OnnxRule:
        from o2o.onnx_fusion.rms_norm import OnnxRmsNormRule

        return OnnxRmsNormRule(form)


main = FuseRmsNorm.main
