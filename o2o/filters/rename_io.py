"""`rename.io.py`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from o2o.cli.arguments import add_io, add_signature
from o2o.cli.text import listed
from o2o.errors import UsageError
from o2o.filters.base import ALL_FORMATS, Filter
from o2o.model import Model
from o2o.rewriting.rename_io import rename_io
from o2o.rewriting.rewire import io_values
from o2o.rewriting.selectors import entry_graphs

if TYPE_CHECKING:
    from o2o.check.interface import Expected


class RenameIo(Filter):
    """Rename inputs or outputs, in the graph and in its signatures.

        tokens -- f -- StatefulPartitionedCall:0   =>   tokens -- f -- logits
                     rename.io.py output StatefulPartitionedCall:0=logits

    OLD is the name of the tensor or its name in a signature. Afterwards both are NEW. With --regex, OLD is a
    pattern that must match the whole name, and NEW may contain \\1, \\2, ... for its groups.
    The filter changes every graph that has OLD. --signature chooses one graph.
    The model is read from stdin, or from the last argument if that has no `=`.
    Refused: a new name that another tensor of the graph has, and an OLD that matches nothing.
    """

    name = "rename.io.py"
    purpose = "Inputs and outputs"
    input_formats = ALL_FORMATS
    usage_example = "rename.io.py input args_0=input_ids args_1=position < in.circle > out.circle"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add_io(parser)
        parser.add_argument("names", nargs="+", metavar="OLD=NEW", help="old and new name")
        parser.add_argument("--regex", action="store_true", help="OLD is a regular expression")
        add_signature(parser)

    def add_input(self, parser: argparse.ArgumentParser) -> None:
        parser.set_defaults(file=None)  # argparse cannot distinguish a file from the names before it

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
        there = listed(value.name or "" for graph in graphs for value in io_values(graph, args.io))
        for graph in graphs:
            for old, new in rename_io(model, graph, args.io, rename).items():
                self.log(f"{model.label(graph)}: {old} is now {new}")
        for old, _, _ in args.renames:
            if old not in used:
                what = "matches" if args.regex else "is called"
                raise UsageError(f"no {args.io} {what} {old!r}; there are: {there}")

    def expected(self, models: Sequence[Model], args: argparse.Namespace) -> Expected:
        from o2o.check.interface import renamed

        def rename(name: str) -> str | None:
            matches = ((pattern.fullmatch(name), new) for _, pattern, new in args.renames)
            return next(((m.expand(new) if args.regex else new) for m, new in matches if m), None)

        return renamed(models, rename, [args.io], args.signature)


def _split(item: str) -> list[str]:
    """The renames in `a=b,c=d`. Another comma is part of a name or a pattern."""
    parts = item.split(",")
    return parts if all("=" in part for part in parts) else [item]


def _rename(text: str, regex: bool) -> tuple[str, re.Pattern[str], str]:
    """OLD, its pattern, and NEW. Raises UsageError."""
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
