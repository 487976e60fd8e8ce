"""`lower.litert.py`."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from typing import Any

from o2o.cli.text import counted, listed
from o2o.errors import UsageError
from o2o.filters.base import ALL_FORMATS
from o2o.filters.onnx_raising import OnnxRaising
from o2o.filters.wrap_composites import wrapped_message
from o2o.lower.litert import lower_to_litert
from o2o.lower.litert.attention import FlashBlocks
from o2o.lower.litert.composites import wrap_composites
from o2o.model import CUSTOM_DOMAIN, Model
from o2o.operators.core_attention import FlashBlockSizes


class LowerLitert(OnnxRaising):
    """Turn Circle or ONNX into TFLite that LiteRT runs.

        decode.circle: RMS_NORM -- ATTENTION -- logits
                                    |  (writes past_key_0)
                                           =>
        decode.tflite: MUL -- MEAN -- RSQRT -- ... -- BATCH_MATMUL -- SOFTMAX -- ... -- logits
                                    DYNAMIC_UPDATE_SLICE -- present_key_0

    RMS_NORM, ROPE, ATTENTION and o2o.attention become builtin operators. Query heads share keys and
    values without copies of them. A cache that ATTENTION updates in place becomes an output too. Operators
    get the versions that LiteRT registers. Weights are not read, so references to a checkpoint stay: run
    bind.weights.py afterwards. A TFLite model passes unchanged. ONNX is first raised as raise.circle.py does.
    Flash attention (--flash) computes several queries in blocks, with an online softmax.
    Refused: operators that LiteRT lacks; the message names their place and module. The four operators above
    must have operands of fixed shape, and none that are quantized except the weights of ATTENTION.
    """

    name = "lower.litert.py"
    purpose = "Convert to another format or runtime"
    usage_example = "lower.litert.py < model.circle | bind.weights.py -o model.tflite"
    input_formats = ALL_FORMATS

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--flash",
            metavar="HOW",
            type=_flash_blocks,
            help="flash attention: always, never, or the block sizes Q,KV. Default: as the operator's "
            "options say; for ATTENTION, always for several queries in caches of more than 512 tokens",
        )
        parser.add_argument(
            "--enable_hlfb",
            action="store_true",
            help="then wrap attention and norms, as wrap.composites.py does",
        )

    def transform(
        self, models: Sequence[Model], args: argparse.Namespace, entry: dict[str, Any] | None
    ) -> Model:
        return super().transform([self.as_circle(model) for model in models], args, entry)

    def apply(self, model: Model, args: argparse.Namespace) -> bool:
        if model.format == "tflite":
            if args.flash is not None or args.enable_hlfb:
                flag = "--enable_hlfb" if args.flash is None else "--flash"
                raise UsageError(f"{flag} needs a Circle model: this one is TFLite already")
            self.log("the model is TFLite already and passes unchanged")
            return False
        before = _operators(model)
        lower_to_litert(model, args.flash)
        if args.enable_hlfb:
            self.log(wrapped_message(wrap_composites(model)))
        after = _operators(model)
        lowered = [f"{count} {name}" for name, count in sorted(before.items()) if name not in after]
        total = counted(sum(after.values()), "operator")
        self.log(f"lowered {listed(lowered)}: {total} now" if lowered else f"nothing to lower in {total}")
        custom = sorted({n.op_type for graph in model.graphs for n in graph if n.domain == CUSTOM_DOMAIN})
        if custom:
            self.log(f"the runtime must know these custom operators: {listed(custom)}")
        return True


def _flash_blocks(text: str) -> FlashBlocks:
    if text in ("always", "never"):
        return text == "always"
    try:
        return FlashBlockSizes.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not always, never or Q,KV: {error}") from None


def _operators(model: Model) -> Counter[str]:
    return Counter(node.op_type for graph in model.graphs for node in graph)


main = LowerLitert.main
