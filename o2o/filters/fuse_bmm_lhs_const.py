"""`fuse.bmm_lhs_const.py`."""

from __future__ import annotations

import argparse

from o2o.filters.fusion import Fusion
from o2o.model import Model
from o2o.rewriting.bmm_lhs_const import BmmLhsConstRule


class FuseBmmLhsConst(Fusion):
    """Turn BATCH_MATMUL with a constant left operand into FULLY_CONNECTED.

        A const [.., M, K] -+                                  x [.., K, N] - TRANSPOSE [.., N, K]
                            BATCH_MATMUL [.., M, N]     =>                        |
        x [.., K, N] -------+      |                              A [M, K] -- FULLY_CONNECTED [.., N, M]
                               TRANSPOSE [.., N, M]

    A x = (x' A')', and x' A' is what FULLY_CONNECTED computes with A for its weights. A TRANSPOSE of the
    result that is there already is what comes out; else one is added. Transposing x is a reshape when K or
    N is 1, as in rotary frequencies times positions.
    Left alone: a left operand that differs from batch to batch, or is not float.
    """

    name = "fuse.bmm_lhs_const.py"
    usage_example = "merge.circles.py prefill.circle decode.circle | fuse.bmm_lhs_const.py > model.circle"
    noun = "product"

    def rule(self, model: Model, args: argparse.Namespace) -> BmmLhsConstRule:
        return BmmLhsConstRule()


main = FuseBmmLhsConst.main
