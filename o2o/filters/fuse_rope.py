"""`fuse.rope.py`."""

from __future__ import annotations

import argparse

from o2o.filters.fusion import Fusion
from o2o.model import Model
from o2o.rewriting.rope import RopeRule


class FuseRope(Fusion):
    """Fuse rotary position embeddings into ROPE.

        x ----+-------------------- MUL cos --+
              |                               ADD        x, sin, cos -- ROPE
              +-- x[H/2:] - NEG -+            |     =>
              |                CONCAT MUL sin-+
              +-- x[:H/2] -------+

    x is [B, N, T, H]; the tables are [1, 1, T, H]: one row a token, the same for all heads. Found by
    dataflow, whichever way the halves are sliced (STRIDED_SLICE, SLICE, SPLIT) and negated.
    Left alone: neighbours rotated in pairs (GPT-J), part of the head rotated, tables that differ by head.
    """

    name = "fuse.rope.py"
    usage_example = "fuse.rope.py < decode.circle > fused.circle"
    formats = ("circle",)
    noun = "rotation"

    def rule(self, model: Model, args: argparse.Namespace) -> RopeRule:
        return RopeRule()


main = FuseRope.main
