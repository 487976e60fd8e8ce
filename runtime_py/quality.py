"""What quantisation cost and saved: `python -m runtime_py.quality BEFORE AFTER [--text FILE]`."""

from __future__ import annotations

from o2o.cli import interrupt

if __name__ == "__main__":
    interrupt.exit_on_interrupt("quality")  # before the other imports, which take a while

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from o2o.cli.arguments import Parser
from o2o.cli.command import run
from o2o.cli.text import counted
from runtime_py.evaluation import dataset

if TYPE_CHECKING:
    from o2o.quantization.compare import Compared


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0; 1 for files that do not belong together or do not run; 2 for wrong usage."""
    argv = sys.argv[1:] if argv is None else argv
    return run("quality", lambda: _run(_parser().parse_args(argv)), debug="--debug" in argv)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m runtime_py.quality",
        description="Say what quantisation cost and saved, by the files themselves: how far the numbers of "
        "each tensor are from what they were, sizes, and, on a text, perplexity (see runtime_py.perplexity). "
        "Errors are shares: rms of the root mean square of the tensor's numbers, max of the largest of them.",
    )
    parser.add_argument(
        "before", metavar="BEFORE", help="package or model's file, with the weights as they were"
    )
    parser.add_argument("after", metavar="AFTER", help="the same, quantised")
    dataset.add_arguments(parser, required=False)
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    return parser


def _run(args: argparse.Namespace) -> None:
    # Imported late, so that --help is quick.
    from o2o import formats
    from o2o.quantization.compare import compare
    from runtime_py.evaluation.log_likelihood import scores
    from runtime_py.package import Package

    packages = [Package.load(path, args.tokenizer) for path in (args.before, args.after)]
    documents = dataset.read(args, packages) if args.text or args.ids else []
    tensors = compare(*(formats.load(package.model) for package in packages))
    told: dict[str, Any] = {"files": [str(package.model) for package in packages]}
    told["bytes"] = [package.model.stat().st_size for package in packages]
    told |= report(tensors)
    if documents:
        found = [dataset.feed(package, documents, args) for package in packages]
        before, after = scores(found)
        told["text"] = dataset.told(args, documents, found)
        told["nats"] = [before.nats, after.nats]
        told["perplexity"] = [before.perplexity, after.perplexity]
        told["change"] = after.change(before)
    print(json.dumps(told, indent=2) if args.json else render(told))


def report(tensors: Sequence[Compared]) -> dict[str, Any]:
    """`tensors`, and their `error` overall, ready for JSON."""
    from o2o.quantization.tensors import Error

    overall = Error()
    rows = []
    for one in tensors:
        overall.add(one.error)
        rows.append(
            {
                "name": one.name,
                "shape": list(one.shape),
                "stored": list(one.stored),
                "bytes": list(one.bytes),
                "error": one.error.told(),
            }
        )
    return {"error": overall.told(), "tensors": rows}


def render(told: dict[str, Any]) -> str:
    """The report for a reader."""
    lines = [
        [
            one["name"],
            "x".join(map(str, one["shape"])),
            " to ".join(one["stored"]),
            " to ".join(f"{size:,}" for size in one["bytes"]),
            f"{one['error']['rms']:.2e}",
            f"{one['error']['max']:.2e}",
        ]
        for one in told["tensors"]
    ]
    if lines:
        sums = [sum(one["bytes"][end] for one in told["tensors"]) for end in (0, 1)]
        shares = [f"{told['error'][kind]:.2e}" for kind in ("rms", "max")]
        count = counted(len(lines), "tensor")
        lines = [
            ["tensor", "shape", "stored", "bytes", "rms error", "max error"],
            *lines,
            ["overall", count, "", " to ".join(f"{size:,}" for size in sums), *shares],
            [],
        ]
    else:
        lines = [["all tensors are stored as they were"], []]
    widths = [
        max(map(len, column)) for column in zip(*(line for line in lines if len(line) > 1), strict=True)
    ]
    text = [
        "  ".join(f"{cell:{width}}" for cell, width in zip(line, widths or [0], strict=False))
        for line in lines
    ]
    before, after = told["bytes"]
    text.append(f"file        {before:,} bytes to {after:,}, {after / before:.1%} of it")
    if "perplexity" in told:
        before, after = told["perplexity"]
        text.append(f"perplexity  {before:.4f} to {after:.4f}, {told['change']:+.2%} ({told['text']})")
    return "\n".join(line.rstrip() for line in text)


if __name__ == "__main__":
    sys.exit(main())
