"""`fuse.rms_norm.py`."""

from __future__ import annotations

import onnx_ir as ir

from o2o.filters.fusion import Fusion
from o2o.formats.tensors import is_constant
from o2o.model import Model, shape_of
from o2o.rewriting.builder import Builder
from o2o.rewriting.matchers import miss
from o2o.rewriting.rewire import replace_output
from o2o.rewriting.rms_norm import ROOTS, Norm, match_norm


class FuseRmsNorm(Fusion):
    """Fuse root-mean-square normalisation into RMS_NORM.

        x -+- square - MEAN - ADD eps - RSQRT -+            x, w -- RMS_NORM (epsilon)
           |                                   MUL   =>
           +-----------------------------------+ - MUL w

    The square may be MUL(x, x), SQUARE or POW(x, 2); the root RSQRT, or SQRT and a division. The mean goes
    over the last axis, w has one number for each of its elements (Zhang and Sennrich 2019).
    Left alone: other axes, a weight that is not a constant [D], a mean subtracted first (LayerNorm).
    """

    name = "fuse.rms_norm.py"
    usage_example = "fuse.rms_norm.py < decode.circle > fused.circle"
    formats = ("circle",)
    anchor = ROOTS
    noun = "normalisation"

    def match(self, node: ir.Node) -> Norm:
        norm = match_norm(node)
        if not is_constant(norm.weight):
            miss("the weight is not a constant", norm.weight)
        return norm

    def rewrite(self, model: Model, graph: ir.Graph, match: Norm) -> None:
        op = Builder(graph, before=match.last)
        old = match.last.outputs[0]
        new = op.node("RMS_NORM", [match.x, match.weight], shape_of(old), epsilon=match.epsilon)
        replace_output(model, old, new)


main = FuseRmsNorm.main
