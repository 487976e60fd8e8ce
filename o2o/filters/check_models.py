"""`check.models.py`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

from o2o.filters.base import ALL_FORMATS, Filter


class CheckModels(Filter):
    """Run two models on the same inputs and compare the outputs.

        before.circle --+
                        +-- check.models.py   =>   checked on LiteRT and numpy: 7 outputs the same, within
        after.circle  --+                          6.6e-07 of the largest number, in 3 runs

    Any filter does this with --check. This command does it for two files.
    Signatures, inputs and outputs are paired by their names, else by their roles in the contract, else by
    their order. Shapes, integer widths, cache layouts and capacities may differ. Each model runs as it is on
    LiteRT. A model with operators that LiteRT lacks runs by their meaning in numpy.
    ONNX runs on ONNX Runtime, or on ONNX's reference evaluator if ONNX Runtime refuses it.
    The exit code is 0 if the outputs are the same, and 1 if they differ. The message names the output, and
    the first tensor of the same name that differs.
    Refused: models with different numbers of signatures, inputs or outputs.
    """

    name = "check.models.py"
    purpose = "Combine, cut, clean up, inspect"
    input_formats = ALL_FORMATS
    usage_example = "check.models.py before.circle after.circle"
    check_help = None
    writes_model = False

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--tolerance",
            metavar="SHARE",
            type=_share,
            help="accept this difference, as a share of the largest number of a tensor (default: 1e-4)",
        )

    def add_input(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("files", nargs=2, metavar="MODEL", help="Circle, TFLite or ONNX; `-` is stdin")

    def input_files(self, args: argparse.Namespace) -> list[str]:
        return list(args.files)

    def run(self, args: argparse.Namespace, argv: Sequence[str]) -> None:
        from o2o.check.compare import check_models
        from o2o.check.signature_comparison import TOLERANCE

        sources = self.open(args)
        first, second = self.read(sources)
        names = [f"the {place} model" for place in ("first", "second")]
        message = check_models(
            first, second, TOLERANCE if args.tolerance is None else args.tolerance, (names[0], names[1])
        )
        for source in sources:
            source.finish()
        self.print(f"{message}\n", args)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 <= share < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 on, such as 1e-4")
    return share


main = CheckModels.main
