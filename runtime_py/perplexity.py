"""Measure how well packages predict a text: `o2o perplexity PACKAGE... --text FILE`."""

from __future__ import annotations

from o2o.cli import interrupt

if __name__ == "__main__":
    interrupt.exit_on_interrupt("perplexity")  # before the slow imports

import argparse
import json
import sys
from collections.abc import Sequence

from o2o.cli.arguments import Parser
from o2o.cli.command import run
from runtime_py.evaluation import dataset


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code: 0; 1 for a package that cannot be run; 2 for wrong usage or an empty text.
    """
    argv = sys.argv[1:] if argv is None else argv
    return run("perplexity", lambda: _run(parser().parse_args(argv)), debug="--debug" in argv)


def parser() -> Parser:
    """Make the command line's parser.

    Returns:
        The parser.
    """
    parser = Parser(
        prog="python -m runtime_py.perplexity",
        description="Measure how well packages predict a text. Prints the mean negative log-likelihood "
        "in nats per token, and its exponential, the perplexity. Each document starts with the "
        "tokenizer's begin token. A document longer than a package's context is cut to it, for all packages. "
        "Prefills read many tokens at once, if they give the logits of each.",
        examples=["o2o perplexity before after --text held_out.txt"],
    )
    parser.add_argument(
        "packages",
        metavar="PACKAGE",
        nargs="+",
        help="folder with a model and its tokenizer, or a model file; the others are compared with the first",
    )
    dataset.add_arguments(parser, required=True)
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _run(args: argparse.Namespace) -> None:
    # Imported late, so that --help is fast.
    from runtime_py.evaluation.log_likelihood import scores
    from runtime_py.package import Package

    packages = [Package.load(path, args.tokenizer) for path in args.packages]
    documents = dataset.read(args, packages)
    nlls = [dataset.evaluate(package, documents, args) for package in packages]
    results = scores(nlls)
    if args.json:
        rows = [
            {
                "package": path,
                "nats": score.nats,
                "perplexity": score.perplexity,
                "change": score.change(results[0]),
            }
            for path, score in zip(args.packages, results, strict=True)
        ]
        header = {"text": args.text or args.ids, "documents": len(documents), "tokens": results[0].tokens}
        print(json.dumps({**header, "packages": rows}, indent=2))
        return
    print(dataset.summary(args, documents, nlls))
    width = max(map(len, args.packages))
    print(f"{'':{width}}  nats a token  perplexity   change")
    for path, score in zip(args.packages, results, strict=True):
        change = f"{score.change(results[0]):+.2%}" if score is not results[0] else ""
        print(f"{path:{width}}  {score.nats:12.5f}  {score.perplexity:10.4f}  {change:>7}".rstrip())


if __name__ == "__main__":
    sys.exit(main())
