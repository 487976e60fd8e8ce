"""`fuse.attention.py`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from o2o.filters.fusion import Fusion, static_graphs
from o2o.model import Model
from o2o.onnx_fusion.forms import Form
from o2o.rewriting.attention.core_rule import CoreRule
from o2o.rewriting.attention.mask_rule import MaskRule
from o2o.rewriting.attention.proofs import Proofs
from o2o.rewriting.attention.rule import AttentionRule
from o2o.rewriting.rewrite_rule import apply_rule

if TYPE_CHECKING:
    from o2o.onnx_fusion.rule import OnnxRule


class FuseAttention(Fusion):
    """Fuse scattered attention into `o2o.attention`, and this into ATTENTION where its operands allow.

        x - FC wq - heads - rotate - q --+
        x - FC wk - heads - rotate - k - cache' - q k' - scale - mask - SOFTMAX - p v - FC wo - y
        x - FC wv - heads ---------- v - cache' ------------------------------------+
                                       =>
        q, k, v, position, mask?, slopes?, sinks? -- o2o.attention
                                       =>
        x, wq, wk, wv, wo, cos, sin, mask?, k_cache?, v_cache?, pos? -- ATTENTION -- y

    Each attention is matched by its data flow from a SOFTMAX; names and order of operators do not matter.
    Axes are followed through every reshape and transpose. Anything may precede q, k and v. Scores may be
    scaled, soft-capped, masked by sums or selections, biased by ALiBi, and have sinks.

    A mask is computed at every position. One that is causal, with or without a window, needs no operand, and
    ALiBi becomes one slope a head. Any other mask becomes the mask operand.

    ATTENTION has operands for plain projections, one rotation of whole heads, and caches only. It writes keys
    and values into its caches, in place, at `pos`. Outputs that the contract names as these caches are
    removed, since the inputs hold them now. A full concatenated cache gets room for new rows only through
    reshape.io.py. Positions of several tokens must be consecutive.

    The rest stays `o2o.attention`, and --explain gives the reason. ATTENTION lacks biases, norms of queries
    and keys, partial rotation, other scales than 1/sqrt(H), soft-caps, windows, ALiBi and sinks. It cannot
    write caches with other readers, and concatenated caches need a mask that it can do without. Without a
    mask these equal ATTENTION only while the cache is full; --assume-full-cache asserts that it always is.
    A concatenated cache that the model also returns grows by a row at each step. It stays, as ATTENTION
    writes into caches of a fixed size and returns none.

    In ONNX the result is Attention of opset 23, or MultiHeadAttention of ONNX Runtime (--form ort), for any
    number of texts, tokens and keys. A model of an older opset is raised to 23 where each of its operators
    means the same there. Masks stay as they are computed, as one operand. Keys repeated for groups of queries
    and concatenated caches become operands of Attention.
    """

    name = "fuse.attention.py"
    purpose = "Fuse"
    usage_example = "fuse.attention.py < decode_.circle > decode.circle"
    input_formats = ("circle", "onnx")
    noun = "attention block"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--assume-full-cache",
            metavar="POSITION",
            help="fuse concatenated caches without a mask too; the input POSITION always holds their length",
        )
        parser.add_argument(
            "--core",
            action="store_true",
            help="stop at o2o.attention: projections and caches stay operators of their own",
        )

    def apply(self, model: Model, args: argparse.Namespace) -> None:
        if model.format == "onnx":
            self.apply_to_onnx(model, args)
            return
        proofs = Proofs()
        attention = AttentionRule(model, proofs, args.assume_full_cache)
        for graph in static_graphs(self, model):
            constants = set(graph.initializers)
            core = apply_rule(model, graph, CoreRule())
            masks = apply_rule(model, graph, MaskRule(proofs))
            if args.core:
                self.report(model.label(graph), core.rewritten, [("alone", core.failures)], args.explain)
                continue
            result = apply_rule(model, graph, attention)
            for name in set(graph.initializers) - constants:  # of masks that turned out to be no operands
                if not graph.initializers[name].uses():
                    del graph.initializers[name]
            left = {node for node, _ in result.failures}
            masked = [(node, failure) for node, failure in masks.failures if node in left]
            self.report(
                model.label(graph),
                result.rewritten,
                [("as o2o.attention", result.failures), ("alone", core.failures)],
                args.explain,
            )
            if args.explain:
                for node, failure in masked:
                    self.log(f"{model.label(graph)}: the mask of {node.outputs[0].name} stays: {failure}")

    def onnx_rule(self, form: Form) -> OnnxRule:
        from o2o.onnx_fusion.attention import OnnxAttentionRule

        return OnnxAttentionRule(form)


main = FuseAttention.main
