"""`quantize.weights.py`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from o2o import streams
from o2o.errors import UsageError
from o2o.filters.base import Filter, Result
from o2o.model import Model
from o2o.quantization.quantize import MatrixResult, quantize
from o2o.quantization.recipes import PARTS, RECIPES, find
from o2o.quantization.report import report, summary


class QuantizeWeights(Filter):
    """Store weights in fewer bits, by a named recipe.

        w const float32 [O,I]                  w const int8 [O,I], scales [O]
        |                                =>    |
        FULLY_CONNECTED                        FULLY_CONNECTED
        table const float32, ids               table const int8, ids - RESHAPE
        |                                =>    |
        GATHER                                 EMBEDDING_LOOKUP - RESHAPE

    Recipes: dynamic_int8 (by row; kernels quantise what the weights are multiplied with), weight_only_int8 (a
    DEQUANTIZE in front, arithmetic in float32: LiteRT keeps a float32 copy for each signature, so this is for
    small models), dynamic_int4_block32 and dynamic_int4_block128 (int4 with a scale for so many columns;
    embedding and head int8), dynamic_int4_block32_head (the head int4 as well, apart from the embedding: for
    small models, of which a step reads little else), float16, none. `true` is dynamic_int8, `false` none;
    ai-edge-quantizer's names are taken, too. --embedding and --head choose otherwise for these two; one table
    for both gets the better of the two schemes.
    The weights may still be in the checkpoint (--weights external): those that are quantised are read there,
    a few rows at a time, and become numbers in the model; the others stay references for bind.weights.py.
    What is done is recorded in the file (o2o.quantization) and --report says how exact each tensor still is.
    Left alone: what other operators use, what is quantised already, what would not become smaller. Rows that
    are no whole number of blocks get shorter blocks, else int8.
    Refused: weights that are not finite.
    """

    name = "quantize.weights.py"
    usage_example = (
        "quantize.weights.py --recipe dynamic_int8 < graph.circle | bind.weights.py > model.circle"
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--recipe", metavar="NAME", default="dynamic_int8", help=f"{', '.join(RECIPES)} (%(default)s)"
        )
        for part, what in (("embedding", "the table of token ids"), ("head", "what makes the logits")):
            parser.add_argument(
                f"--{part}", metavar="SCHEME", help=f"for {what}: {', '.join(PARTS)} (as the recipe says)"
            )
        parser.add_argument("--report", metavar="FILE", help="write errors and sizes there, as JSON")

    def check_arguments(self, args: argparse.Namespace) -> None:
        find(args.recipe, args.embedding, args.head)
        files = [Path(file).resolve() for file in (args.report, args.output) if file is not None]
        if len(set(files)) < len(files):
            raise UsageError(f"--report and -o are both {args.report}: one would replace the other")

    def apply(self, model: Model, args: argparse.Namespace) -> bool:
        self._done: list[MatrixResult] = quantize(model, find(args.recipe, args.embedding, args.head))
        return any(one.scheme for one in self._done)

    def check(self, models: Sequence[Model], result: Result, args: argparse.Namespace) -> str:
        from o2o.check import check

        assert isinstance(result, Model)
        return check(models, result, find(args.recipe, args.embedding, args.head).tolerance or None)

    def run(self, args: argparse.Namespace, argv: Sequence[str]) -> None:
        """Quantise, then write the report: errors are known when the weights have been streamed."""
        with nullcontext() if args.report is None else streams.open_output(args.report) as sink:
            super().run(args, argv)
            payload = report(find(args.recipe, args.embedding, args.head), self._done)
            self.log(summary(payload))
            if sink is not None:
                sink.write((json.dumps(payload, indent=2) + "\n").encode())


main = QuantizeWeights.main
