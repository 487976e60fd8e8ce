"""`wrap.composites.py`."""

from __future__ import annotations

import argparse
from collections import Counter

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

    A runtime that knows the name runs its own kernel, as XNNPACK does for attention. Others run the subgraph.
    Composites are for accelerators: on a CPU they are no faster, and decoding can be slower.
    Attention is found from its SOFTMAX, in any layout, with or without grouped queries and repeated keys. Its
    operands become q [1, T, N, H], k and v [1, S, K, H]. The mask becomes [1, 1, T, S] or [1, 1, 1, S], zeros
    where there was none. Operands in other layouts, such as caches [1, K, S, H], are transposed first:
    run transpose.io.kvcache.py before if that costs too much.
    Circle's RMS_NORM is wrapped too. Circle's ATTENTION is not: run lower.litert.py first.
    Left alone, with the reason (--explain): tensors that are not float32 of a fixed shape, and intermediate
    results with other users. Attention is left alone if masks differ between heads, or values have another
    head dimension than keys. RMSNorm is left alone over other axes than the last.
    """

    name = "wrap.composites.py"
    purpose = "Fuse"
    usage_example = "lower.litert.py < model.circle | wrap.composites.py -o model.tflite"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--explain", action="store_true", help="print why each other candidate was left alone"
        )

    def apply(self, model: Model, args: argparse.Namespace) -> None:
        reasons: list[str] = []

        def explain(graph: ir.Graph, node: ir.Node, failure: MatchFailure) -> None:
            reasons.append(f"{model.label(graph)}: {node.op_type} {node.outputs[0].name}: {failure}")

        message = wrapped_message(wrap_composites(model, explain))
        if reasons:
            message += f", left {counted(len(reasons), 'candidate')} alone"
            message += "" if args.explain else " (--explain gives reasons)"
        self.log(message)
        for reason in reasons if args.explain else ():
            self.log(reason)


def wrapped_message(counts: Counter[str]) -> str:
    """Return the message for composites that were added.

    Args:
        counts: Their number, by name.

    Returns:
        One line.
    """
    return f"wrapped {listed(f'{count} {name}' for name, count in sorted(counts.items())) or 'nothing'}"


main = WrapComposites.main
