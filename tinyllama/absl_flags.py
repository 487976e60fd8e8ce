"""Flags that are on or off, as absl has them: `--name`, `--name=true`, `--noname`, `--name=false`."""

from __future__ import annotations

import argparse

TRUE, FALSE = ("true", "t", "yes", "y", "1"), ("false", "f", "no", "n", "0")


def add_boolean(parser: argparse.ArgumentParser, name: str, default: bool, help: str) -> None:
    """Let `parser` take the flag `name`."""
    told = f"{help} ({str(default).lower()})"
    parser.add_argument(
        f"--{name}", nargs="?", const=True, default=default, type=boolean, metavar="BOOL", help=told
    )
    parser.add_argument(f"--no{name}", dest=name, action="store_false", help=argparse.SUPPRESS)


def boolean(text: str) -> bool:
    """The value of a flag's text. Raises ArgumentTypeError."""
    if text.lower() not in (*TRUE, *FALSE):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() in TRUE
