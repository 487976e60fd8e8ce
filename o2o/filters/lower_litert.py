"""`lower.litert.py`."""

from __future__ import annotations

import argparse
from collections import Counter

from o2o.cli.text import counted, listed
from o2o.errors import UsageError
from o2o.filters.base import Filter
from o2o.lower.litert.attention import FlashBlocks
from o2o.lower.litert.composites import wrap_composites
from o2o.lower.litert.lowering import lower
from o2o.model import CUSTOM_DOMAIN, Model
from o2o.operators.causal_attention import Blocks


class LowerLitert(Filter):
    """Turn Circle into TFLite that LiteRT runs.

        decode.circle: RMS_NORM -- ATTENTION -- logits
                                    |  (writes past_key_0)
                                           =>
        decode.tflite: MUL -- MEAN -- RSQRT -- ... -- BATCH_MATMUL -- SOFTMAX -- ... -- logits
                                    DYNAMIC_UPDATE_SLICE -- present_key_0

    RMS_NORM, ROPE, ATTENTION and o2o.causal_attention become builtin operators; keys and values are never
    repeated for the query heads that share them. A cache that ATTENTION writes in place becomes an output as
    well. Operators get the versions that LiteRT registers. Weights are not looked at: references stay, for
    bind.weights.py behind this. A model that is TFLite already passes as it is.
    Several queries that look into a long cache are computed in blocks, with an online softmax (flash
    attention): see --flash.
    Refused: what LiteRT has no operator for, named with its place and the module that it comes from; operands
    of the operators above that are quantised, but for the weights of ATTENTION, or have no fixed shape.
    """

    name = "lower.litert.py"
    usage_example = "lower.litert.py < model.circle | bind.weights.py -o model.tflite"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--flash",
            metavar="HOW",
            type=_flash,
            help="attention in blocks of queries and keys: always, never, or Q,KV; left out: what the "
            "operator says, and for ATTENTION of several queries in caches of more than 512 tokens always",
        )
        parser.add_argument(
            "--enable_hlfb", action="store_true", help="wrap attention and norms as wrap.composites.py does"
        )

    def apply(self, model: Model, args: argparse.Namespace) -> bool:
        if model.format == "tflite":
            if args.flash is not None or args.enable_hlfb:
                flag = "--enable_hlfb" if args.flash is None else "--flash"
                raise UsageError(f"{flag} needs a Circle model: this one is TFLite already")
            self.log("the model is TFLite already and passes unchanged")
            return False
        before = _operators(model)
        lower(model, args.flash)
        if args.enable_hlfb:
            wrapped = wrap_composites(model)
            told = [f"{count} {name}" for name, count in sorted(wrapped.items())]
            self.log(f"wrapped {listed(told)}" if told else "nothing to wrap")
        after = _operators(model)
        gone = [f"{count} {name}" for name, count in sorted(before.items()) if name not in after]
        made = counted(sum(after.values()), "operator")
        self.log(f"lowered {listed(gone)}: {made} now" if gone else f"nothing to lower in {made}")
        custom = sorted({n.op_type for graph in model.graphs for n in graph if n.domain == CUSTOM_DOMAIN})
        if custom:
            self.log(f"the runtime must know these custom operators: {listed(custom)}")
        return True


def _flash(text: str) -> FlashBlocks:
    if text in ("always", "never"):
        return text == "always"
    try:
        return Blocks.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: always, never, or Q,KV: {error}") from None


def _operators(model: Model) -> Counter[str]:
    return Counter(node.op_type for graph in model.graphs for node in graph)


main = LowerLitert.main
