"""List the filters by purpose, with one line each."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from typing import get_args

from o2o import filters
from o2o.cli import command
from o2o.cli.arguments import Parser
from o2o.errors import UsageError


def parser() -> Parser:
    """Make the command line's parser.

    Returns:
        The parser.
    """
    parser = Parser(
        prog="o2o filters",
        description="List the filters by purpose. Each reads a model from stdin or a file, changes it, and "
        "writes it to stdout or to -o FILE. `o2o FILTER --help` explains one.",
        examples=["o2o filters", "o2o filters attention"],
    )
    parser.add_argument(
        "word", nargs="?", default="", help="list only the filters with this text in the line"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)

    def body() -> int:
        sys.stdout.write(listing(parser().parse_args(arguments).word))
        return 0

    return command.run("filters", body, debug="--debug" in arguments)


def listing(word: str = "") -> str:
    """List the filters by purpose.

    Args:
        word: List only those with this text in their line, in any case.

    Returns:
        A heading for each purpose, and a line for each filter.

    Raises:
        UsageError: No line has the text.
    """
    from o2o.filters.base import Purpose

    commands = [filters.load(name) for name in filters.names()]
    width = max(len(filter_.name) for filter_ in commands)
    lines: list[str] = []
    for purpose in get_args(Purpose):
        rows = [
            f"  {filter_.name:<{width}}  {(inspect.getdoc(filter_) or '').partition(chr(10))[0]}"
            for filter_ in commands
            if filter_.purpose == purpose
        ]
        if rows := [row for row in rows if word.lower() in row.lower()]:
            lines += [purpose, *rows]
    if not lines:
        raise UsageError(f"no filter has {word!r} in its line: `o2o filters` lists all")
    return "".join(f"{line}\n" for line in lines)
