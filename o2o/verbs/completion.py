"""Print a script that completes `o2o` and the filters in a shell.

The script is static: completing a word starts no Python. It knows all verbs, filters and flags of this
version.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from o2o import filters
from o2o.cli import command
from o2o.cli.arguments import Parser

SHELLS = ("bash", "zsh", "fish")
EXAMPLES = [
    "o2o completion bash > ~/.local/share/bash-completion/completions/o2o",
    "o2o completion zsh > ~/.zfunc/_o2o       # a folder of $fpath",
    "o2o completion fish > ~/.config/fish/completions/o2o.fish",
]


def parser() -> Parser:
    """Make the command line's parser.

    Returns:
        The parser.
    """
    parser = Parser(
        prog="o2o completion",
        description="Print a script that completes the verbs, filters and flags of o2o. "
        "Store it where the shell looks for completions, and start a new shell.",
        examples=EXAMPLES,
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell")
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

    def body() -> None:
        args = parser().parse_args(arguments)
        import shtab  # late, so that --help is fast

        sys.stdout.write(shtab.complete(tree(), args.shell) + "\n")

    return command.run("completion", body, debug="--debug" in arguments)


def tree() -> argparse.ArgumentParser:
    """Make one parser of all verbs and filters, from which the script is made.

    Returns:
        The parser of `o2o`, with a subparser for each verb and each filter.
    """
    from o2o.verbs import verbs

    root = argparse.ArgumentParser(prog="o2o", description="graph rewriting for on-device language models")
    root.add_argument("--version", action="version", version="")
    children = root.add_subparsers(metavar="VERB")

    def add(name: str, parser: argparse.ArgumentParser, summary: str) -> None:
        children.add_parser(name, parents=[_with_files(parser)], add_help=False, help=summary)

    for verb in verbs():
        add(verb.name, verb.parser(), verb.summary)
    for module in filters.names():
        filter_ = filters.load(module)
        summary = (filter_.__doc__ or "").strip().partition("\n")[0]
        add(filter_.name.removesuffix(".py"), filter_().parser(), summary)
    return root


def _with_files(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Let arguments that name files and folders complete to paths."""
    import shtab

    for action in parser._actions:
        shown = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
        if shown in ("FILE", "FILES", "BEFORE", "AFTER"):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif shown in ("DIR", "PACKAGE", "MODEL", "CHECKPOINT"):
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    return parser
