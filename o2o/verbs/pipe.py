"""Run a pipeline of filters in one process."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from o2o.cli import command
from o2o.cli.arguments import Parser

DESCRIPTION = """Run a pipeline of filters in one process.

    o2o pipe 'fuse.attention | gc' < a.circle > b.circle
    fuse.attention.py < a.circle | gc.py > b.circle         writes the same file, byte for byte

The syntax is the shell's: words, quotes, `|`, and `<` and `>` for files. With -f, the pipelines are in FILE,
one on each line; `\\` continues a line, `#` begins a comment. A shell runs the same file.

One process starts once, and hands the model from filter to filter in memory. Weights are copied once, from
the input to the output.
"""


def parser() -> Parser:
    """Make the command line's parser.

    Returns:
        The parser.
    """
    parser = Parser(
        prog="o2o pipe",
        description=DESCRIPTION,
        examples=[
            "o2o pipe 'fuse.attention | reshape.io input --by_shape [1,16,30,4] [1,16,32,4] | gc' "
            "< decode_.circle > decode.circle",
            "o2o pipe -f model.pipe",
        ],
    )
    parser.add_argument("pipeline", nargs="?", help="the pipeline, in quotes")
    parser.add_argument("-f", "--file", metavar="FILE", help="read the pipelines from FILE; `-` is stdin")
    parser.add_argument("-o", "--output", metavar="MODEL", help="the last filter writes here (stdout)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code, that of the filter that failed.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)

    def body() -> int:
        return _run(parser().parse_args(arguments))

    return command.run("pipe", body, debug="--debug" in arguments)


def _run(args: argparse.Namespace) -> int:
    from o2o.cli.pipelines import parse
    from o2o.errors import UsageError
    from o2o.filters import pipeline

    if (args.pipeline is None) == (args.file is None):
        raise UsageError("give a pipeline in quotes, or -f FILE")
    pipelines = parse(args.pipeline if args.file is None else _text(args.file))
    if args.output is not None:
        if pipelines[-1].output is not None:
            raise UsageError(f"the pipeline has two outputs: {pipelines[-1].output} and {args.output}")
        pipelines[-1] = replace(pipelines[-1], output=args.output)
    return pipeline.run(pipelines, args.debug)


def _text(file: str) -> str:
    from o2o.errors import UsageError

    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{file}: not UTF-8 text, so no pipeline") from None
