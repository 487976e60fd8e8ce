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

    Each block is matched by its data flow from a SOFTMAX; names and order of operators do not matter. Prefill
    and decode graphs match, with grouped-query attention or not, with RoPE or not. Caches may be updated by
    CONCATENATION or DYNAMIC_UPDATE_SLICE. Axes are followed through every reshape and transpose.

    A mask is computed at every position. A causal mask needs no operand; any other mask becomes the mask
    operand. ATTENTION writes keys and values into its caches, in place, at `pos`. Outputs that the contract
    names as these caches are removed, since the inputs hold them now. A full concatenated cache gets room for
    new rows only through reshape.io.py. Positions of several tokens must be consecutive.

    Left alone, with the reason (--explain): biases, scales other than 1/sqrt(H), caches with other readers,
    masks that a concatenated cache cannot keep. A concatenation without a mask equals ATTENTION only while
    the cache is full; --assume-full-cache asserts that it always is.
    """

    name = "fuse.attention.py"
    purpose = "Fuse"
    usage_example = "fuse.attention.py < decode_.circle > decode.circle"
    input_formats = ("circle",)
    noun = "attention block"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--assume-full-cache",
            metavar="POSITION",
            help="fuse concatenated caches without a mask too; the input POSITION always holds their length",
        )

    def rule(self, model: Model, args: argparse.Namespace) -> AttentionRule:
        return AttentionRule(model, args.assume_full_cache)


main = FuseAttention.main
