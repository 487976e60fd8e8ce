"""`lower.onnx.py`."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from o2o.cli.text import counted, listed
from o2o.errors import UsageError
from o2o.filters.base import Filter
from o2o.formats.onnx_writer import new_model
from o2o.lower.onnx import FORMS, lower_to_onnx
from o2o.lower.onnx.genai import adapt_to_genai, genai_config, write_genai_files
from o2o.model import Model
from o2o.raising import as_circle
from o2o.streams import Source


class LowerOnnx(Filter):
    """Turn Circle into ONNX: one graph for prefill and decode, of any number of tokens.

        decode.circle: tokens [1,1] -- RMS_NORM -- ATTENTION -- logits [1,1,V]
                                                    |  (writes past_key_0)
                                           =>
        model.onnx:    tokens [1,T] -- RMSNormalization -- Gemm -- Attention -- logits [1,1,V]
                                              TensorScatter -- present_key_0

    The decode graph is lowered for T tokens, the first of them at `position`. The inputs `past_key_0`, ...
    are caches [1,K,S,H]. The outputs `present_key_0`, ... are the same caches with T rows written; a runtime
    that binds both to one buffer updates the cache in place. Only the last token gets logits.
    The form `standard` uses operators of ONNX opset 24 only, for any conforming runtime. The form `ort` uses
    ONNX Runtime's own operators too (GroupQueryAttention, MatMulNBits, ...). Weights stay quantized.
    With -o FILE, large weights go to a second file, FILE.data. stdout gets one file of up to 2 GiB.
    ONNX is first raised as raise.circle.py does; sign.contract.py before gives it roles.
    With --genai, inputs and outputs are those of onnxruntime-genai, with a mask in place of the position.
    Attention may be ATTENTION, `o2o.attention` or scattered, with a mask that depends on the position alone.
    Refused: TFLite, a model without a decode graph, concatenated caches, and other operators that mix tokens.
    Run bind.weights.py before if weights are not in the file.
    """

    name = "lower.onnx.py"
    purpose = "Convert to another format or runtime"
    usage_example = "lower.onnx.py --form ort model.circle -o model.onnx"
    input_formats = ("circle", "onnx")
    _genai: tuple[dict[str, Any], Path] | None = None
    """The content of genai_config.json, and the folder of the checkpoint."""
    check_help = "run the result on ONNX Runtime, and compare the outputs with those of the model"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--form",
            choices=tuple(FORMS),
            default="standard",
            help="which operators to use (default: %(default)s)",
        )
        parser.add_argument(
            "--genai",
            metavar="CHECKPOINT",
            type=Path,
            help="write genai_config.json and the tokenizer of this folder beside FILE: a model for "
            "onnxruntime-genai",
        )
        parser.add_argument(
            "--logits",
            choices=("last", "all"),
            default="last",
            help="which tokens get logits (default: %(default)s)",
        )

    def check_arguments(self, args: argparse.Namespace) -> None:
        if args.genai is None:
            return
        if args.form != "ort" or not args.output:
            raise UsageError("--genai writes files beside the model: give --form ort and -o FILE too")
        if not args.genai.is_dir():
            raise UsageError(f"--genai {args.genai}: no such folder")

    def transform(
        self, models: Sequence[Model], args: argparse.Namespace, entry: dict[str, Any] | None
    ) -> Model:
        model = as_circle(models[0])
        if entry is not None:
            model.history.append(entry)
        lowered = lower_to_onnx(model, args.form, args.logits)
        if model.associated_files:
            names = listed([file.info.filename for file in model.associated_files])
            self.log(f"ONNX holds no associated files: {names} are not written")
        operators = Counter(node.op_type for node in lowered.graph)
        most_common = ", ".join(f"{count} {name}" for name, count in operators.most_common(4))
        self.log(f"{args.form}: {counted(sum(operators.values()), 'operator')}: {most_common}, ...")
        result = new_model(lowered)
        if args.genai is not None:
            capacity = adapt_to_genai(result)
            self._genai = genai_config(result, capacity, args.genai, Path(args.output).name), args.genai
        return result

    def write(self, result: Model, output: str | None, sources: Sequence[Source]) -> None:
        super().write(result, output, sources)
        if self._genai is not None and output is not None:
            names = write_genai_files(*self._genai, Path(output).parent)
            self.log(f"for onnxruntime-genai: {listed(names)}")

    def check(self, models: Sequence[Model], result: Model, args: argparse.Namespace) -> str:
        from o2o.check.onnx import check

        return check(as_circle(models[0]), result)


main = LowerOnnx.main
