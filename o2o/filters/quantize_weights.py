"""`quantize.weights.py`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from o2o import streams
from o2o.errors import UsageError
from o2o.filters.base import ALL_FORMATS, Filter
from o2o.model import Model
from o2o.quantization.onnx_forms import FORMS, prepare
from o2o.quantization.quantize import MatrixResult, quantize
from o2o.quantization.recipes import PARTS, RECIPES, find_recipe
from o2o.quantization.report import report, summary


class QuantizeWeights(Filter):
    """Quantize weights by a named recipe.

        w const float32 [O,I]                  w const int8 [O,I], scales [O]
        |                                =>    |
        FULLY_CONNECTED                        FULLY_CONNECTED
        table const float32, ids               table const int8, ids - RESHAPE
        |                                =>    |
        GATHER                                 EMBEDDING_LOOKUP - RESHAPE

    Recipes:

        dynamic_int8                int8, a scale for each row; kernels quantize the activations
        weight_only_int8            int8 and a DEQUANTIZE; arithmetic in float32 (small models only: LiteRT
                                    stores a float32 copy for each signature)
        dynamic_int4_block32        int4, a scale for each 32 columns; embedding and LM head in int8
        dynamic_int4_block128       the same, a scale for each 128 columns
        dynamic_int4_block32_head   the LM head in int4, too, untied from the embedding (for small models: the
                                    LM head is most of what a decode step reads)
        float16                     float16 and a DEQUANTIZE
        none                        no change

    `true` means dynamic_int8, `false` none; the names of ai-edge-quantizer work as well. --embedding and
    --head select another scheme for these two. A tied table gets the more accurate of both schemes.
    Weights may be external (--weights external). Quantized ones are read from the checkpoint, a few rows at a
    time, and become part of the model. The others stay external until bind.weights.py.
    ONNX: weights of MatMul, Gemm and Gather. --form ort uses ONNX Runtime's own operators; kernels quantize
    the activations. That is the default of the recipes `dynamic_...`. --form standard, the default of others,
    puts DequantizeLinear or Cast before the operator, for any runtime.
    The file records the recipe (o2o.quantization). --report writes the error of each tensor.
    Not quantized: operands of other operators, quantized weights, tensors that would not become smaller. Rows
    without a whole number of blocks get shorter blocks, else int8.
    Refused: weights that are not finite.
    """

    name = "quantize.weights.py"
    purpose = "Weights"
    input_formats = ALL_FORMATS
    usage_example = (
        "quantize.weights.py --recipe dynamic_int8 < graph.circle | bind.weights.py > model.circle"
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--recipe", metavar="NAME", default="dynamic_int8", help=f"{', '.join(RECIPES)} (%(default)s)"
        )
        for part, description in (("embedding", "token embeddings"), ("head", "weights of the logits")):
            parser.add_argument(
                f"--{part}",
                metavar="SCHEME",
                help=f"scheme of the {description}: {', '.join(PARTS)} (default: the recipe's)",
            )
        parser.add_argument(
            "--form",
            choices=FORMS,
            help="which operators of ONNX to use (default: ort for the recipes dynamic_..., else standard)",
        )
        parser.add_argument("--report", metavar="FILE", help="write errors and sizes to this file, as JSON")

    def check_arguments(self, args: argparse.Namespace) -> None:
        find_recipe(args.recipe, args.embedding, args.head)
        files = [Path(file).resolve() for file in (args.report, args.output) if file is not None]
        if len(set(files)) < len(files):
            raise UsageError(f"--report and -o are both {args.report}: one would replace the other")

    def apply(self, model: Model, args: argparse.Namespace) -> bool:
        recipe = find_recipe(args.recipe, args.embedding, args.head)
        if args.form is not None and model.format != "onnx":
            raise UsageError("--form is for ONNX models")
        form = args.form or ("standard" if recipe.explicit else "ort")
        if model.format == "onnx":
            self.messages += prepare(model, recipe, form)
        self._results: list[MatrixResult] = quantize(model, recipe, form)
        return any(result.scheme for result in self._results)

    def tolerance(self, args: argparse.Namespace) -> float:
        return find_recipe(args.recipe, args.embedding, args.head).tolerance or super().tolerance(args)

    def run(self, args: argparse.Namespace, argv: Sequence[str]) -> None:
        # The report comes last: errors are known when the weights have been streamed.
        with nullcontext() if args.report is None else streams.open_output(args.report) as sink:
            super().run(args, argv)
            contents = report(find_recipe(args.recipe, args.embedding, args.head), self._results)
            self.log(summary(contents))
            if sink is not None:
                sink.write((json.dumps(contents, indent=2) + "\n").encode())


main = QuantizeWeights.main
