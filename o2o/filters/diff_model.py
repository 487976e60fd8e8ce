"""`diff.model.py`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from o2o.diff.compare import diff
from o2o.diff.text import render
from o2o.filters.base import ALL_FORMATS, Filter


class DiffModel(Filter):
    """Print what differs between two models: structure, constants, metadata, contract and history.

        before.circle --+                      --- before.circle
                        +-- diff.model.py  =>  +++ after.circle
        after.circle  --+                      graph decode: 83 operators -> 62, 41 match
                                                 - 42 operators: 12 MUL, 9 ADD, ...

    Operators and tensors are matched by structure and by names. An inserted operator shifts nothing.
    Constants of a match are compared: by bytes, and by the numbers that they stand for. For each the largest
    difference, the root mean square (rms), and the rms relative to that of the first model's are printed.
    Weights are read in chunks.
    Of ONNX, branches and bodies of operators that match are compared, and functions by their names.
    Operators in another order count as a difference. Another layout of the file does not.
    The output is text on stdout, or JSON with --json. It is empty if the models are the same.
    The exit code is that of diff: 0 the same, 1 different, 2 an error.
    """

    name = "diff.model.py"
    purpose = "Combine, cut, clean up, inspect"
    input_formats = ALL_FORMATS
    usage_example = "diff.model.py before.circle after.circle"
    check_help = None
    writes_model = False
    failure_code = 2

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")
        parser.add_argument("--all", action="store_true", help="print all entries, not a dozen of each kind")

    def add_input(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("files", nargs=2, metavar="MODEL", help="a model; `-` is stdin")

    def input_files(self, args: argparse.Namespace) -> list[str]:
        return list(args.files)

    def run(self, args: argparse.Namespace, argv: Sequence[str]) -> int:
        sources = self.open(args)
        first, second = self.read(sources)
        differences = diff(first, second)
        if args.json:
            text = json.dumps(differences, indent=2) + "\n"
        else:
            text = render(differences, (args.files[0], args.files[1]), args.all)
        for source in sources:
            source.finish()
        self.print(text, args)
        return 0 if differences["same"] else 1


main = DiffModel.main
