"""Argument types and arguments that several filters share."""

from __future__ import annotations

import argparse
import re


def id_list(text: str) -> list[int]:
    """`0,2-4` -> [0, 2, 3, 4]: an argparse type."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        if match is None:
            raise argparse.ArgumentTypeError(f"{part!r} is neither a number nor a range; write 0,2-4")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise argparse.ArgumentTypeError(f"the range {part.strip()} runs backwards")
        if last - first > 1_000_000:
            raise argparse.ArgumentTypeError(f"the range {part.strip()} is longer than any graph")
        found += range(first, last + 1)
    return found


def name_list(text: str) -> list[str]:
    """`a,b` -> ["a", "b"]: an argparse type."""
    found = [part.strip() for part in text.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError(f"an empty name in {text!r}; write a,b")
    return found


def add_io(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("io", choices=("input", "output"), help="which ends of the graph")


def add_signature(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--signature", metavar="NAME", help="only in the graph of this signature")
