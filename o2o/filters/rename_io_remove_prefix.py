"""`rename.io.remove_prefix.py`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from o2o.cli.arguments import add_signature
from o2o.cli.text import counted
from o2o.errors import UsageError
from o2o.filters.base import ALL_FORMATS, Filter
from o2o.model import Model
from o2o.rewriting.rename_io import rename_io
from o2o.rewriting.rewire import IoKind
from o2o.rewriting.selectors import entry_graphs

if TYPE_CHECKING:
    from o2o.check.interface import Expected


class RenameIoRemovePrefix(Filter):
    """Remove a prefix from the names of inputs and outputs, in the graph and in its signatures.

        tinyllama/tokens -- f -- tinyllama/logits   =>   tokens -- f -- logits
                 rename.io.remove_prefix.py tinyllama/

    This is a special case of rename.io.py. It exists for its established name. Names without the prefix stay.
    The filter changes the first graph and all graphs with a signature. --signature chooses one graph.
    Refused: a prefix that no name has, that equals a whole name, or whose removal makes two names equal.
    """

    name = "rename.io.remove_prefix.py"
    purpose = "Inputs and outputs"
    input_formats = ALL_FORMATS
    usage_example = "rename.io.remove_prefix.py serving_default_ < in.circle > out.circle"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("prefix", metavar="PREFIX", help="the prefix to remove")
        add_signature(parser)

    def apply(self, model: Model, args: argparse.Namespace) -> None:
        if not args.prefix:
            raise UsageError("the prefix is empty")

        def rename(name: str) -> str | None:
            return name.removeprefix(args.prefix) if name.startswith(args.prefix) else None

        changed = 0
        sides: tuple[IoKind, IoKind] = ("input", "output")
        for graph in entry_graphs(model, args.signature):
            for io in sides:
                changed += len(rename_io(model, graph, io, rename))
        if not changed:
            raise UsageError(f"no input or output has a name that starts with {args.prefix!r}")
        self.log(f"removed the prefix from {counted(changed, 'name')}")

    def expected(self, models: Sequence[Model], args: argparse.Namespace) -> Expected:
        from o2o.check.interface import renamed

        def rename(name: str) -> str | None:
            return name[len(args.prefix) :] if name.startswith(args.prefix) else None

        return renamed(models, rename, ["input", "output"], args.signature)


main = RenameIoRemovePrefix.main
