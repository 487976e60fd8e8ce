"""Chat with the model of a package: `o2o chat PACKAGE`.

The same as `o2o run PACKAGE --chat`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from o2o.cli.arguments import Parser
from o2o.cli.command import run
from runtime_py import run as run_command

HIDDEN = ("chat", "stream", "log_probabilities")
"""Flags of `run` that mean nothing here; they are taken and not shown."""


def parser() -> Parser:
    """Make the command line's parser.

    Returns:
        The parser of `run`, for a chat.
    """
    parser = run_command.parser()
    parser.description = (
        "Chat with the model of a package by the checkpoint's template. Each line of stdin is a message."
    )
    parser.set_examples(['o2o chat my-package --system "Be brief." --temperature 0.7'])
    parser.set_defaults(chat=True)
    for action in parser._actions:
        if action.dest in HIDDEN:
            action.help = argparse.SUPPRESS
        elif action.dest == "prompt":
            action.help = "the only message to answer (default: read messages from stdin)"
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code, as for `runtime_py.run`.
    """
    argv = sys.argv[1:] if argv is None else argv
    return run("chat", lambda: run_command.execute(parser().parse_args(argv)), debug="--debug" in argv)
