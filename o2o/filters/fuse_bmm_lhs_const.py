"""`fuse.bmm_lhs_const.py`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from o2o.filters.base import ALL_FORMATS
from o2o.filters.fusion import Fusion
from o2o.model import Model
from o2o.onnx_fusion.forms import Form
from o2o.rewriting.bmm_const import BmmConstRule

if TYPE_CHECKING:
    from o2o.onnx_fusion.rule import OnnxRule


class FuseBmmLhsConst(Fusion):
    """Convert BATCH_MATMUL with a constant operand to FULLY_CONNECTED.

        A const [.., M, K] -+                                  x [.., K, N] - TRANSPOSE [.., N, K]
                            BATCH_MATMUL [.., M, N]     =>                        |
        x [.., K, N] -------+      |                              A [M, K] -- FULLY_CONNECTED [.., N, M]
                               TRANSPOSE [.., N, M]

        x [.., M, K] -------+                           =>    x [.., M, K] -- FULLY_CONNECTED [.., M, N]
        A const [K, N] -----BATCH_MATMUL [.., M, N]                   A' [N, K] -+

    A x = (x' A')', and FULLY_CONNECTED with weights A computes x' A'. If a TRANSPOSE of the result exists,
    its output is replaced; else a TRANSPOSE is added. If K or N is 1, x is reshaped, not transposed: rotary
    frequencies times positions are such a product.
    A constant right operand is transposed: it becomes the weights of a linear layer, as in GPT-2, which
    quantize.weights.py then quantizes. A reference to a checkpoint's tensor stays one; bind.weights.py
    transposes the numbers.
    Reshapes, transposes and broadcasts between a constant and the product, as einsum writes them, go away.
    In ONNX the result is MatMul with a constant matrix on the right.
    Left alone: a constant that differs between batches or is not float. So is a reference that would have to
    be transposed, if its axes are others than those of the checkpoint's tensor.
    """

    name = "fuse.bmm_lhs_const.py"
    purpose = "Fuse"
    usage_example = "merge.circles.py prefill.circle decode.circle | fuse.bmm_lhs_const.py > model.circle"
    input_formats = ALL_FORMATS
    noun = "product"
    has_forms = False

    def rule(self, model: Model, args: argparse.Namespace) -> BmmConstRule:
        return BmmConstRule()

    def onnx_rule(self, form: Form) -> OnnxRule:
        from o2o.onnx_fusion.bmm_const import OnnxBmmConstRule

        return OnnxBmmConstRule(form)


main = FuseBmmLhsConst.main
