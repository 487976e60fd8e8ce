"""`inspect.model.py`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from o2o.describe import render, summarize
from o2o.errors import UsageError
from o2o.filters.base import Filter
from o2o.litertlm import is_bundle, language_model, read_bundle
from o2o.litertlm import summary as bundles


class Inspect(Filter):
    """Print what a model contains: inputs, outputs, operators, constants, contract and history.

        model.circle -- inspect.model.py   =>   decode.circle: Circle, 3,201,376 bytes, 1 subgraph
                                                subgraph 0 'decode', signature decode
                                                  inputs   0  input_ids  int64  [1,1]  tokens
                                                  ...

    A package's folder stands for its model. Of a `.litertlm` file, the sections and the metadata are printed
    too.
    The output is text on stdout, or JSON with --json. No model is written.
    Only the graph is read, not the weights: a large model takes no longer than a small one.
    Refused: a file that is neither Circle nor TFLite nor `.litertlm`.
    """

    name = "inspect.model.py"
    purpose = "Combine, cut, clean up, inspect"
    usage_example = "inspect.model.py model.circle"
    check_help = None
    writes_model = False

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")

    def input_files(self, args: argparse.Namespace) -> list[str]:
        file = args.file or "-"
        if not Path(file).is_dir():
            return [file]
        models = [Path(file) / f"model.{suffix}" for suffix in (*self.input_formats, "litertlm")]
        if existing := [str(model) for model in models if model.is_file()]:
            return existing[:1]
        raise UsageError(f"{file}: this folder has no model.circle and no model.tflite or model.litertlm")

    def run(self, args: argparse.Namespace, argv: Sequence[str]) -> None:
        (source,) = sources = self.open(args)
        (model,) = self.read(sources)
        source.finish()
        summary, size = summarize(model), source.size or 0
        bundle = bundles.summarize(read_bundle(source)) if is_bundle(source.header) else None
        if args.json:
            outer = {"bytes": size} | ({"litertlm": bundle} if bundle else {})
            text = json.dumps({**outer, **summary}, indent=2) + "\n"
        else:
            text = render(summary, source.name, language_model(source).size or 0)
            if bundle:
                text = bundles.render(bundle, source.name, size) + text
        self.print(text, args)


main = Inspect.main
