"""`transpose.io.kvcache.py`."""

from __future__ import annotations

import argparse
from typing import get_args

from o2o.contract import Layout
from o2o.errors import UsageError
from o2o.filters.base import Filter
from o2o.model import Model
from o2o.rewriting.cache_layout import transpose_caches
from o2o.rewriting.selectors import entry_graphs


class TransposeIoKvcache(Filter):
    """Give the key/value caches another layout: tokens before heads (BTNH), or heads before tokens (BNTH).

        past_key_0 [1,16,32,4] BNTH -- ATTENTION    =>   past_key_0 [1,32,16,4] BTNH -- ATTENTION
        past_key_0 BNTH -- CONCATENATION            =>   past_key_0 BTNH -- TRANSPOSE -- CONCATENATION
        ADD -- present_key_0 BNTH                   =>   ADD -- TRANSPOSE -- present_key_0 BTNH

    Every cache input and every key/value output that the contract tells, or that ATTENTION uses, in every
    graph. ATTENTION takes either layout (the contract says which), a DYNAMIC_UPDATE_SLICE that writes a cache
    and gives it out goes on doing so in place; other users get a TRANSPOSE.
    Refused: a model in which no cache can be told from other inputs; caches quantised by channel.
    """

    name = "transpose.io.kvcache.py"
    usage_example = "transpose.io.kvcache.py < in.circle > out.circle"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--to", choices=get_args(Layout), default="BTNH", help="the layout (%(default)s)")

    def apply(self, model: Model, args: argparse.Namespace) -> None:
        turned = seen = 0
        for graph in entry_graphs(model, None):
            counts = transpose_caches(model, graph, args.to)
            turned, seen = turned + counts[0], seen + counts[1]
        if not seen:
            raise UsageError(
                "no input or output is a key/value cache: the model has no contract and no ATTENTION"
            )
        self.log(f"turned {turned} of {seen} key/value tensors to {args.to}")


main = TransposeIoKvcache.main
