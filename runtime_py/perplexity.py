"""How well packages predict a text: `python -m runtime_py.perplexity PACKAGE... --text FILE`."""

from __future__ import annotations

from o2o.cli import interrupt

if __name__ == "__main__":
    interrupt.exit_on_interrupt("perplexity")  # before the other imports, which take a while

import argparse
import json
import sys
from collections.abc import Sequence

from o2o.cli.arguments import Parser
from o2o.cli.command import run
from runtime_py.evaluation import dataset


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0; 1 for a package that does not run; 2 for wrong usage, or a text with nothing in it."""
    argv = sys.argv[1:] if argv is None else argv
    return run("perplexity", lambda: _run(_parser().parse_args(argv)), debug="--debug" in argv)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m runtime_py.perplexity",
        description="Say how well packages predict a text: the mean of -log p over its tokens, in nats, and "
        "e to that, the perplexity. Each document begins anew with the tokenizer's beginning token; one that "
        "is longer than a package's caches is cut there, for all. Tokens are fed one by one, as when text is "
        "generated.",
    )
    parser.add_argument(
        "packages",
        metavar="PACKAGE",
        nargs="+",
        help="folder with a model and its tokenizer, or a model's file; all are compared with the first",
    )
    dataset.add_arguments(parser, required=True)
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    return parser


def _run(args: argparse.Namespace) -> None:
    # Imported late, so that --help is quick.
    from runtime_py.evaluation.log_likelihood import scores
    from runtime_py.package import Package

    packages = [Package.load(path, args.tokenizer) for path in args.packages]
    documents = dataset.read(args, packages)
    found = [dataset.feed(package, documents, args) for package in packages]
    measured = scores(found)
    if args.json:
        rows = [
            {
                "package": path,
                "nats": score.nats,
                "perplexity": score.perplexity,
                "change": score.change(measured[0]),
            }
            for path, score in zip(args.packages, measured, strict=True)
        ]
        told = {"text": args.text or args.ids, "documents": len(documents), "tokens": measured[0].tokens}
        print(json.dumps({**told, "packages": rows}, indent=2))
        return
    print(dataset.told(args, documents, found))
    width = max(map(len, args.packages))
    print(f"{'':{width}}  nats a token  perplexity   change")
    for path, score in zip(args.packages, measured, strict=True):
        change = f"{score.change(measured[0]):+.2%}" if score is not measured[0] else ""
        print(f"{path:{width}}  {score.nats:12.5f}  {score.perplexity:10.4f}  {change:>7}".rstrip())


if __name__ == "__main__":
    sys.exit(main())
