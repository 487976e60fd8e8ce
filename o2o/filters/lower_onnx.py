"""`lower.onnx.py`."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from o2o import streams
from o2o.cli.text import counted
from o2o.filters.base import Filter, Result
from o2o.lower.onnx import FORMS, lower_to_onnx, stream, write
from o2o.model import Model


class LowerOnnx(Filter):
    """Lower Circle to ONNX: one graph for prefill and decode, of any number of tokens.

        decode.circle: tokens [1,1] -- RMS_NORM -- ATTENTION -- logits [1,1,V]
                                                    |  (writes past_key_0)
                                           =>
        model.onnx:    tokens [1,T] -- RMSNormalization -- Gemm -- Attention -- logits [1,1,V]
                                              TensorScatter -- present_key_0

    The decode graph is generalised from one token to T tokens, the first of them at `position`. Inputs are
    the caches `past_key_0`, ... [1,K,S,H]. Outputs are `present_key_0`, ...: the same with T rows written.
    Bind both to one buffer to update caches in place. Logits are those of the last token.
    --form standard uses only operators of ONNX opset 24, for any conforming runtime. --form ort uses
    operators of ONNX Runtime (GroupQueryAttention, MatMulNBits, ...). Quantised weights stay quantised.
    With -o FILE, large weights go into FILE.data. On stdout all is in one file of up to 2 GiB.
    Refused: TFLite, and a model without a decode graph. Scattered attention needs fuse.attention.py first,
    and external weights need bind.weights.py. Operators that cannot be applied to each token alone are
    refused too.
    """

    name = "lower.onnx.py"
    usage_example = "lower.onnx.py --form ort model.circle -o model.onnx"
    formats = ("circle",)
    check_help = "run the model on LiteRT and the result on ONNX Runtime, and compare the outputs"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--form", choices=tuple(FORMS), default="standard", help="operators of the result (%(default)s)"
        )
        parser.add_argument(
            "--logits", choices=("last", "all"), default="last", help="tokens with logits (%(default)s)"
        )

    def transform(
        self, models: Sequence[Model], args: argparse.Namespace, entry: dict[str, Any] | None
    ) -> ir.Model:
        (model,) = models
        if entry is not None:
            model.history.append(entry)
        lowered = lower_to_onnx(model, args.form, args.logits)
        operators = Counter(node.op_type for node in lowered.graph)
        most_common = ", ".join(f"{count} {name}" for name, count in operators.most_common(4))
        self.log(f"{args.form}: {counted(sum(operators.values()), 'operator')}: {most_common}, ...")
        return lowered

    def check(self, models: Sequence[Model], result: Result, args: argparse.Namespace) -> str:
        from o2o.check.onnx import check

        (model,) = models
        assert isinstance(result, ir.Model)
        return check(model, result)

    def write(self, result: Result, output: str | None, sources: Sequence[streams.Source]) -> None:
        assert isinstance(result, ir.Model)
        if output is None:
            with streams.open_output(None) as sink:
                stream(result, sink)
        else:
            write(result, output)
        for source in sources:
            source.finish()


main = LowerOnnx.main
