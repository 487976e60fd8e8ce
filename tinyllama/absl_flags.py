"""Boolean flags as in absl: `--name`, `--name=true`, `--noname`, `--name=false`."""

from __future__ import annotations

import argparse

TRUE, FALSE = ("true", "t", "yes", "y", "1"), ("false", "f", "no", "n", "0")


def add_boolean(parser: argparse.ArgumentParser, name: str, default: bool, help: str) -> None:
    """Add a boolean flag.

    Args:
        parser: The command's parser.
        name: The flag's name, without dashes.
        default: Its value if it is not given.
        help: Its description; the default is appended.
    """
    text = f"{help} ({str(default).lower()})"
    parser.add_argument(
        f"--{name}", nargs="?", const=True, default=default, type=boolean, metavar="BOOL", help=text
    )
    parser.add_argument(f"--no{name}", dest=name, action="store_false", help=argparse.SUPPRESS)


def boolean(text: str) -> bool:
    """Parse the value of a boolean flag.

    Args:
        text: One of `TRUE` or `FALSE`, in any case.

    Returns:
        The value.

    Raises:
        argparse.ArgumentTypeError: The text is neither.
    """
    if text.lower() not in (*TRUE, *FALSE):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() in TRUE
