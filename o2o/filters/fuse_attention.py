"""`fuse.attention.py`."""

from __future__ import annotations

import argparse

import numpy as np
import onnx_ir as ir

from o2o.filters.fusion import Fusion
from o2o.model import Model, shape_of
from o2o.rewriting.attention.block import Block, match_block
from o2o.rewriting.attention.visibility import Visibility
from o2o.rewriting.builder import Builder, add_constant
from o2o.rewriting.dead_code_elimination import inner_graphs
from o2o.rewriting.rewire import replace_output
from o2o.rewriting.selectors import keep_signatures_in_step, set_ends


class FuseAttention(Fusion):
    """Fuse scattered attention blocks into ATTENTION.

        x - FC wq - heads - rotate - q --+
        x - FC wk - heads - rotate - k - cache' - q k' - scale - mask - SOFTMAX - p v - FC wo - y
        x - FC wv - heads ---------- v - cache' ------------------------------------+
                                       =>
        x, wq, wk, wv, wo, cos, sin, mask?, k_cache?, v_cache?, pos? -- ATTENTION -- y

    Found by dataflow from each SOFTMAX, whatever the operators are called or numbered: any number of
    layers and heads, grouped-query or not, prefill and decode, rotated or not, caches joined by
    CONCATENATION or DYNAMIC_UPDATE_SLICE. Axes are followed through every reshape and transpose, and a mask
    is computed at every position: a causal one needs no operand, any other stays as the mask operand. What is
    fused writes its keys and values into its caches, in place, at `pos`; outputs that the contract says are
    these caches afterwards go, as the inputs are that now. Where a concatenated cache is full, there is room
    for new rows only after reshape.io.py. A position for each of several tokens is taken to be one more than
    that of the token before it.

    Left alone, with the reason (--explain): biases, scales other than 1/sqrt(H), caches that anyone else
    reads, masks that a concatenated cache cannot keep. A concatenation without a mask is right at one
    position only, that of a full cache; with --assume-full-cache that is taken as given.
    """

    name = "fuse.attention.py"
    usage_example = "fuse.attention.py < decode_.circle > decode.circle"
    formats = ("circle",)
    anchor = ("SOFTMAX",)
    noun = "attention block"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--assume-full-cache",
            metavar="POSITION",
            help="fuse concatenated caches without a mask too: the input of this name is always their length",
        )

    def apply(self, model: Model, args: argparse.Namespace) -> None:
        self.visibility = Visibility(args.assume_full_cache)
        self.inner = {inner for graph in model.graphs for node in graph for inner in inner_graphs(node)}
        super().apply(model, args)

    def match(self, node: ir.Node) -> Block:
        return match_block(node, self.visibility, self.inner)

    def rewrite(self, model: Model, graph: ir.Graph, match: Block) -> None:
        attention, old = match.attention, match.last.outputs[0]
        if match.zero_mask is not None:
            zeros = np.zeros(match.zero_mask, attention.x.dtype.numpy())  # type: ignore[union-attr]
            attention.mask = add_constant(graph, zeros, "no_mask")
        op = Builder(graph, before=match.last)
        T, H = attention.T, attention.H
        for table in ("cos", "sin"):
            value = getattr(attention, table)
            if value is not None:
                setattr(attention, table, op.reshape(value, [1, T, H], name=table))
        attention.x = op.reshape(attention.x, [1, T, shape_of(attention.x)[-1]], name="x")
        result = op.node("ATTENTION", attention.operands(), [1, T, shape_of(old)[-1]])
        replace_output(model, old, op.reshape(result, shape_of(old)))
        if match.given_out:
            set_ends(graph, "output", [value for value in graph.outputs if value not in match.given_out])
            keep_signatures_in_step(model, graph)


main = FuseAttention.main
