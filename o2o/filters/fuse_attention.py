"""`fuse.attention.py`."""

from __future__ import annotations

import argparse

from o2o.filters.fusion import Fusion
from o2o.model import Model
from o2o.rewriting.attention.rule import AttentionRule


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
    noun = "attention block"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--assume-full-cache",
            metavar="POSITION",
            help="fuse concatenated caches without a mask too: the input of this name is always their length",
        )

    def rule(self, model: Model, args: argparse.Namespace) -> AttentionRule:
        return AttentionRule(model, args.assume_full_cache)


main = FuseAttention.main
