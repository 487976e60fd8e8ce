"""`fuse.fc.py`."""

from __future__ import annotations

import argparse

from o2o.filters.base import ALL_FORMATS, Filter
from o2o.model import Model
from o2o.rewriting.stacked_products import fuse_products


class FuseFc(Filter):
    """Fuse the linear layers of one input into one with stacked weights.

        x -- FULLY_CONNECTED (q [N*H,D]) -- q       x -- FULLY_CONNECTED ([(N+2K)*H,D]) -- SLICE -- q
        x -- FULLY_CONNECTED (k [K*H,D]) -- k   =>                                      \\- SLICE -- k
        x -- FULLY_CONNECTED (v [K*H,D]) -- v                                            \\- SLICE -- v

    This applies to query, key and value projections, and to the gate and up projections of an MLP. A step
    then runs fewer operators, so its threads synchronize less often. Results are bit-identical.
    Graphs that share matrices share the stacked ones. A graph that uses only part of a group computes the
    rest too. Weights may be quantized by row or by block.
    In ONNX these are MatMul, Gemm with its bias, and MatMulNBits; a Split takes the place of the slices.
    Left alone: FULLY_CONNECTED with a bias or a fused activation, and weights of unlike dtype or scheme.
    Weights that are still in a checkpoint are left alone too: run bind.weights.py first.
    """

    name = "fuse.fc.py"
    purpose = "Fuse"
    input_formats = ALL_FORMATS
    usage_example = "fuse.fc.py < model.circle > joined.circle"

    def apply(self, model: Model, args: argparse.Namespace) -> None:
        result = fuse_products(model)
        noun = "FULLY_CONNECTED" if model.format != "onnx" else "products"
        self.log(f"fused {result.before} {noun} into {result.after}" if result.after else "nothing to fuse")


main = FuseFc.main
