"""`inspect.model.py`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from o2o import streams
from o2o.describe import render, summarize
from o2o.errors import ModelError, UsageError
from o2o.filters.base import ALL_FORMATS, Filter
from o2o.litertlm import is_bundle, language_model, read_bundle
from o2o.litertlm import summary as bundles
from o2o.model import Model


class Inspect(Filter):
    """Print what a model contains: inputs, outputs, operators, constants, contract and history.

        model.circle -- inspect.model.py   =>   decode.circle: Circle, 3,201,376 bytes, 1 subgraph
                                                subgraph 0 'decode', signature decode
                                                  inputs   0  input_ids  int64  [1,1]  tokens
                                                  ...

    A package's folder stands for its model. Of a `.litertlm` file, the sections and the metadata are printed
    too.
    The output is text on stdout, JSON with --json, or one page for a browser with --html. The page shows
    layers, operators, the largest tensors, contract and history. It loads nothing from elsewhere.
    --node-data is for Google's Model Explorer. The output is then a number for each operator: bytes of its
    constants, or with --report the errors in a report of quantize.weights.py.
    No model is written.
    Only the graph is read, not the weights: a large model takes no longer than a small one.
    Refused: a file that is not Circle, TFLite, ONNX or `.litertlm`.
    """

    name = "inspect.model.py"
    purpose = "Combine, cut, clean up, inspect"
    input_formats = ALL_FORMATS
    usage_example = "inspect.model.py model.circle"
    check_help = None
    writes_model = False

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        form = parser.add_mutually_exclusive_group()
        form.add_argument("--json", action="store_true", help="print one JSON object, for programs")
        form.add_argument("--html", action="store_true", help="print one page in HTML, for a browser")
        form.add_argument(
            "--node-data",
            action="store_true",
            help="print JSON for Model Explorer: a number for each operator",
        )
        parser.add_argument(
            "--report", metavar="FILE", help="with --node-data: errors of this report of quantize.weights.py"
        )

    def check_arguments(self, args: argparse.Namespace) -> None:
        if args.report is not None and not args.node_data:
            raise UsageError("--report needs --node-data")

    def input_files(self, args: argparse.Namespace) -> list[str]:
        file = args.file or "-"
        if not Path(file).is_dir():
            return [file]
        models = [Path(file) / f"model.{suffix}" for suffix in (*self.input_formats, "litertlm")]
        if existing := [str(model) for model in models if model.is_file()]:
            return existing[:1]
        raise UsageError(
            f"{file}: this folder has no model.circle and no model.tflite, model.onnx or model.litertlm"
        )

    def run(self, args: argparse.Namespace, argv: Sequence[str]) -> None:
        (source,) = sources = self.open(args)
        (model,) = self.read(sources)
        source.finish()
        self.print(_text(model, source, args), args)


def _text(model: Model, source: streams.Source, args: argparse.Namespace) -> str:
    size = source.size or 0
    if args.html:
        from o2o.visualization.page import page

        return page(model, Path(source.name).name, size)
    if args.node_data:
        from o2o.visualization.node_data import node_data

        return json.dumps(node_data(model, _report(args.report)), indent=2) + "\n"
    bundle = bundles.summarize(read_bundle(source)) if is_bundle(source.header) else None
    if args.json:
        outer = {"bytes": size} | ({"litertlm": bundle} if bundle else {})
        return json.dumps({**outer, **summarize(model)}, indent=2) + "\n"
    text = render(summarize(model), source.name, language_model(source).size or 0)
    return bundles.render(bundle, source.name, size) + text if bundle else text


def _report(file: str | None) -> Any:
    """Raises ModelError for a file that is no JSON."""
    if file is None:
        return None
    with open(file, encoding="utf-8") as report:
        try:
            return json.load(report)
        except ValueError as error:
            raise ModelError(f"{file}: the report is no JSON: {error}") from error


main = Inspect.main
