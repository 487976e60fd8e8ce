"""`rename.io.py`."""

from __future__ import annotations

import argparse
import re

from o2o.cli.arguments import add_io, add_signature
from o2o.cli.text import listed
from o2o.errors import UsageError
from o2o.filters.base import Filter
from o2o.model import Model
from o2o.rewriting.rename_io import rename_io
from o2o.rewriting.rewire import io_values
from o2o.rewriting.selectors import entry_graphs


class RenameIo(Filter):
    """Give inputs or outputs other names, in the graph and in its signatures.

        tokens -- f -- StatefulPartitionedCall:0   =>   tokens -- f -- logits
                     rename.io.py output StatefulPartitionedCall:0=logits

    OLD is the tensor's name or the one that a signature gives it; afterwards both are NEW. With --regex,
    OLD is a pattern that must match the whole name, and NEW may hold \\1, \\2, ... for its groups.
    In every graph that has OLD; --signature chooses one.
    Refused: a name that another tensor of the graph has; an OLD that nothing is called.
    The model comes from stdin, or from a last argument without `=`.
    """

    name = "rename.io.py"
    usage_example = "rename.io.py input args_0=input_ids args_1=position < in.circle > out.circle"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add_io(parser)
        parser.add_argument("names", nargs="+", metavar="OLD=NEW", help="the old name and the new one")
        parser.add_argument("--regex", action="store_true", help="OLD is a regular expression")
        add_signature(parser)

    def add_input(self, parser: argparse.ArgumentParser) -> None:
        parser.set_defaults(file=None)  # argparse cannot tell a file from the names before it

    def check_arguments(self, args: argparse.Namespace) -> None:
        if len(args.names) > 1 and "=" not in args.names[-1]:
            args.file = args.names.pop()
        args.renames = [_rename(text, args.regex) for item in args.names for text in _split(item)]

    def apply(self, model: Model, args: argparse.Namespace) -> None:
        used: set[str] = set()

        def rename(name: str) -> str | None:
            for old, pattern, new in args.renames:
                if match := pattern.fullmatch(name):
                    used.add(old)
                    return _expand(match, new) if args.regex else new
            return None

        graphs = entry_graphs(model, args.signature)
        there = listed([value.name or "" for graph in graphs for value in io_values(graph, args.io)])
        for graph in graphs:
            for old, new in rename_io(model, graph, args.io, rename).items():
                self.log(f"{model.label(graph)}: {old} is now {new}")
        for old, _, _ in args.renames:
            if old not in used:
                what = "matches" if args.regex else "is called"
                raise UsageError(f"no {args.io} {what} {old!r}; there are: {there}")


def _split(item: str) -> list[str]:
    """`a=b,c=d` is two; a comma may also be part of a name or a pattern."""
    parts = item.split(",")
    return parts if all("=" in part for part in parts) else [item]


def _rename(text: str, regex: bool) -> tuple[str, re.Pattern[str], str]:
    """(OLD, what matches it, NEW). Raises UsageError."""
    old, separator, new = text.partition("=")
    if not (separator and old and new):
        raise UsageError(f"{text!r} is not OLD=NEW")
    try:
        return old, re.compile(old if regex else re.escape(old)), new
    except re.error as error:
        raise UsageError(f"{text!r}: {error}") from error


def _expand(match: re.Match[str], new: str) -> str:
    try:
        return match.expand(new)
    except (re.error, IndexError) as error:
        raise UsageError(f"{new!r}: {error}") from error


main = RenameIo.main
