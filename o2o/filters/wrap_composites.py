"""`wrap.composites.py`."""

from __future__ import annotations

import argparse

import onnx_ir as ir

from o2o.cli.text import counted, listed
from o2o.filters.base import Filter
from o2o.lower.litert.composites import wrap_composites
from o2o.model import Model
from o2o.rewriting.matchers import MatchFailure


class WrapComposites(Filter):
    """Wrap attention and RMSNorm in composites that accelerators know by name.

        q, k - BATCH_MATMUL - scale - mask - SOFTMAX - BATCH_MATMUL v
                                       =>
        q, k, v, mask -- STABLEHLO_COMPOSITE odml.scaled_dot_product_attention (scale, logit_cap?)
                                       |  stands for
                          a subgraph of the same operators

        x, w -- STABLEHLO_COMPOSITE odml.rms_norm (epsilon)

    A runtime that knows a composite's name computes it as it likes, as XNNPACK does with attention; others
    run the subgraph. That is for accelerators: on a CPU it is no faster, and decoding can be slower.
    Attention is found from its SOFTMAX, in any layout, grouped-query or not, with keys that are repeated or
    not; its operands become [1, T, N, H] for q and the result, [1, S, K, H] for k and v, and [1, 1, T, S] or
    [1, 1, 1, S] for the mask, which is of zeros where there was none. Where they are laid out otherwise, as
    caches [1, K, S, H] are, they are transposed before the composite: wrap models with caches [1, S, K, H]
    (transpose.io.kvcache.py) if that costs too much.
    Left alone, with the reason (--explain): what is not float32 of a fixed shape, masks that differ from head
    to head, values of another head dimension than keys, norms over other axes, what is used elsewhere too.
    ATTENTION of Circle is lower.litert.py's; RMS_NORM of Circle is wrapped.
    """

    name = "wrap.composites.py"
    usage_example = "lower.litert.py < model.circle | wrap.composites.py -o model.tflite"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--explain", action="store_true", help="for each candidate left alone, the condition that failed"
        )

    def apply(self, model: Model, args: argparse.Namespace) -> None:
        reasons: list[str] = []

        def explain(graph: ir.Graph, node: ir.Node, failure: MatchFailure) -> None:
            reasons.append(f"{model.label(graph)}: {node.op_type} {node.outputs[0].name}: {failure}")

        wrapped = wrap_composites(model, explain)
        told = listed(f"{count} {name}" for name, count in sorted(wrapped.items())) or "nothing"
        left = f", left {counted(len(reasons), 'candidate')} alone" if reasons else ""
        left += " (--explain gives reasons)" if reasons and not args.explain else ""
        self.log(f"wrapped {told}{left}")
        for reason in reasons if args.explain else ():
            self.log(reason)


main = WrapComposites.main
