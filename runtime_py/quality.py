"""Compare a model before and after quantization: `o2o compare BEFORE AFTER`."""

from __future__ import annotations

from o2o.cli import interrupt

if __name__ == "__main__":
    interrupt.exit_on_interrupt("quality")  # before the slow imports

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from o2o.cli.arguments import Parser
from o2o.cli.command import run
from o2o.cli.progress import progress
from o2o.cli.text import counted
from runtime_py.evaluation import dataset

if TYPE_CHECKING:
    from o2o.quantization.compare import Comparison


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code: 0; 1 for different models, or one that cannot be run; 2 for wrong usage.
    """
    argv = sys.argv[1:] if argv is None else argv
    return run("quality", lambda: _run(parser().parse_args(argv)), debug="--debug" in argv)


def parser() -> Parser:
    """Make the command line's parser.

    Returns:
        The parser.
    """
    parser = Parser(
        prog="python -m runtime_py.quality",
        description="Compare a model before and after quantization: the quantization error of each tensor, "
        "file sizes, and predictions of a text. Errors are relative: rms error to the root mean square of a "
        "tensor's numbers, max error to the largest number. Predictions are compared by perplexity and by "
        "the KL divergence of AFTER from BEFORE in nats a token.",
        examples=["o2o compare before after --text held_out.txt --json"],
    )
    parser.add_argument("before", metavar="BEFORE", help="package or model file before quantization")
    parser.add_argument("after", metavar="AFTER", help="package or model file after quantization")
    dataset.add_arguments(parser, required=False)
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _run(args: argparse.Namespace) -> None:
    # Imported late, so that --help is fast.
    from o2o import formats
    from o2o.quantization.compare import compare
    from runtime_py.evaluation.log_likelihood import scores
    from runtime_py.package import Package

    packages = [Package.load(path, args.tokenizer) for path in (args.before, args.after)]
    documents = dataset.read(args, packages) if args.text or args.ids else []
    with progress("compare the weights", 1, "model"):
        tensors = compare(*(formats.load(package.model) for package in packages))
    report: dict[str, Any] = {"files": [str(package.model) for package in packages]}
    report["bytes"] = [package.model.stat().st_size for package in packages]
    report |= tensor_report(tensors)
    if documents:
        divergence = dataset.diverge(packages[0], packages[1], documents, args)
        before, after = scores(divergence.nlls)
        report["text"] = dataset.summary(args, documents, divergence.nlls)
        report["kl_divergence"] = {"mean": divergence.mean, "percentile_99": divergence.percentile_99}
        report["top1_agreement"] = divergence.top1_agreement
        report["nats"] = [before.nats, after.nats]
        report["perplexity"] = [before.perplexity, after.perplexity]
        report["change"] = after.change(before)
    print(json.dumps(report, indent=2) if args.json else render(report))


def tensor_report(tensors: Sequence[Comparison]) -> dict[str, Any]:
    """Report the quantization error of each tensor and of all together.

    Args:
        tensors: The tensors that differ.

    Returns:
        An object for JSON with `error` and `tensors`.
    """
    from o2o.quantization.error import QuantizationError

    overall = QuantizationError()
    rows = []
    for one in tensors:
        overall.add(one.error)
        rows.append(
            {
                "name": one.name,
                "shape": list(one.shape),
                "stored": list(one.stored),
                "bytes": list(one.bytes),
                "error": one.error.as_json(),
            }
        )
    return {"error": overall.as_json(), "tensors": rows}


def render(report: dict[str, Any]) -> str:
    """Format the report as text.

    Args:
        report: The report, as it is printed with `--json`.

    Returns:
        Lines of text.
    """
    rows = [
        [
            tensor["name"],
            "x".join(map(str, tensor["shape"])),
            " to ".join(tensor["stored"]),
            " to ".join(f"{size:,}" for size in tensor["bytes"]),
            f"{tensor['error']['rms']:.2e}",
            f"{tensor['error']['max']:.2e}",
        ]
        for tensor in report["tensors"]
    ]
    if rows:
        sums = [sum(tensor["bytes"][index] for tensor in report["tensors"]) for index in (0, 1)]
        sizes = " to ".join(f"{size:,}" for size in sums)
        errors = [f"{report['error'][kind]:.2e}" for kind in ("rms", "max")]
        overall = ["overall", counted(len(rows), "tensor"), "", sizes, *errors]
        rows = [["tensor", "shape", "stored", "bytes", "rms error", "max error"], *rows, overall]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows
        ]
    else:
        lines = ["all tensors are stored as before"]
    before, after = report["bytes"]
    lines += ["", f"file        {before:,} bytes to {after:,}, {after / before:.1%} of it"]
    if "perplexity" in report:
        before, after = report["perplexity"]
        lines.append(f"perplexity  {before:.4f} to {after:.4f}, {report['change']:+.2%} ({report['text']})")
        kl = report["kl_divergence"]
        lines.append(f"divergence  {kl['mean']:.6f} nats a token, 99th percentile {kl['percentile_99']:.6f}")
        lines.append(f"top token   the same for {report['top1_agreement']:.2%} of the tokens")
    return "\n".join(line.rstrip() for line in lines)


if __name__ == "__main__":
    sys.exit(main())
