"""`fuse.fc.py`."""

from __future__ import annotations

import argparse

from o2o.filters.base import Filter
from o2o.model import Model
from o2o.rewriting.stacked_fully_connected import fuse_fully_connected


class FuseFc(Filter):
    """Fuse the FULLY_CONNECTED operators of one input into one with stacked weights.

        x -- FULLY_CONNECTED (q [N*H,D]) -- q       x -- FULLY_CONNECTED ([(N+2K)*H,D]) -- SLICE -- q
        x -- FULLY_CONNECTED (k [K*H,D]) -- k   =>                                      \\- SLICE -- k
        x -- FULLY_CONNECTED (v [K*H,D]) -- v                                            \\- SLICE -- v

    This applies to query, key and value projections, and to the gate and up projections of an MLP. A step
    then runs fewer operators, so its threads synchronize less often. Results are bit-identical.
    Graphs that share matrices share the stacked ones. A graph that uses only part of a group computes the
    rest too. Weights may be quantized by row or by block.
    Left alone: operators with a bias or a fused activation, and weights of unlike dtype or scheme. Weights
    that are still in a checkpoint are left alone too: run bind.weights.py first.
    """

    name = "fuse.fc.py"
    purpose = "Fuse"
    usage_example = "fuse.fc.py < model.circle > joined.circle"

    def apply(self, model: Model, args: argparse.Namespace) -> None:
        result = fuse_fully_connected(model)
        self.log(
            f"fused {result.before} FULLY_CONNECTED into {result.after}"
            if result.after
            else "nothing to fuse"
        )


main = FuseFc.main
