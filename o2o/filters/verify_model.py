"""`verify.model.py`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from o2o.cli.text import counted
from o2o.filters.base import ALL_FORMATS, Filter
from o2o.verifier.issue import Issue
from o2o.verifier.verify import verify

SHOWN = 12
"""Warnings of one code that the text shows."""


class VerifyModel(Filter):
    """Check a model by static rules: references, shapes, dtypes, versions, contract.

        model.circle -- verify.model.py  =>  error V102 decode, operator 7, y: ADD: y is declared [1,5], ...
                                             warning V009 decode, operator 9, z: MUL: no output depends ...
                                             model.circle: 1 error, 1 warning

    Each issue has a stable code and its place. Nothing runs, and weights are not read.

        V0xx   references between tables, operators, tensors and signatures
        V1xx   operators: operands, inferred shapes, dtypes, versions, quantization parameters
        V2xx   the contract: roles, caches, agreement of signatures
        V3xx   with --engine: what this engine lacks after the runtime's lowering, or says when it loads ONNX;
               onnx.checker
        V4xx   with --tico: what Samsung's verifier reports

    --codes lists all codes. The output is text on stdout, errors first, or JSON with --json. The text shows a
    dozen warnings of each code.
    The exit code is 1 for an error, else 0. --warnings-as-errors counts warnings as errors.
    """

    name = "verify.model.py"
    purpose = "Combine, cut, clean up, inspect"
    input_formats = ALL_FORMATS
    usage_example = "verify.model.py --engine litert model.circle"
    check_help = None
    writes_model = False

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")
        parser.add_argument("--warnings-as-errors", action="store_true", help="exit with 1 for a warning too")
        parser.add_argument(
            "--engine",
            action="append",
            choices=("litert", "onert", "onnx"),
            default=[],
            help="report what this engine lacks; several times for several engines",
        )
        parser.add_argument("--tico", action="store_true", help="ask TICO's verifier too, if it is installed")
        parser.add_argument("--codes", action="store_true", help="list the codes and their meanings")

    def run(self, args: argparse.Namespace, argv: Sequence[str]) -> int:
        if args.codes:
            self.print(_codes(), args)
            return 0
        (source,) = self.open(args)
        issues = verify(source, list(dict.fromkeys(args.engine)), args.tico)
        source.finish()
        errors = [issue for issue in issues if issue.severity == "error"]
        if args.json:
            contents = {"errors": len(errors), "issues": [issue.as_json() for issue in issues]}
            text = json.dumps(contents, indent=2) + "\n"
        else:
            text = _text(issues, args.file or "-")
        self.print(text, args)
        return int(bool(issues if args.warnings_as_errors else errors))


def _text(issues: Sequence[Issue], name: str) -> str:
    errors = [issue.text() for issue in issues if issue.severity == "error"]
    warnings = [issue for issue in issues if issue.severity == "warning"]
    lines = list(errors)
    for code, group in groupby(sorted(warnings, key=lambda issue: issue.code), key=lambda issue: issue.code):
        of_code = [issue.text() for issue in group]
        lines += of_code[:SHOWN]
        if len(of_code) > SHOWN:
            lines.append(f"... and {len(of_code) - SHOWN:,} more {code} (--json shows all)")
    counts = [(len(errors), "error"), (len(warnings), "warning")]
    summary = ", ".join(counted(count, noun) for count, noun in counts if count) or "no issues"
    source = "stdin" if name == "-" else Path(name).name
    return "".join(f"{line}\n" for line in (*lines, f"{source}: {summary}"))


def _codes() -> str:
    from o2o.verifier.issue import CODES

    return "".join(f"{code} {severity:<7} {meaning}\n" for code, (severity, meaning) in CODES.items())


main = VerifyModel.main
