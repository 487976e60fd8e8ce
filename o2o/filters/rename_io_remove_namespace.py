"""`rename.io.remove_namespace.py`."""

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

IO: tuple[IoKind, IoKind] = ("input", "output")


class RenameIoRemoveNamespace(Filter):
    """Remove namespaces from the names of inputs and outputs, in the graph and in its signatures.

        tico::input_ids -- f -- torch.nn.modules.linear.Linear::linear_24
                                   =>   input_ids -- f -- linear_24

    A namespace is all before the last `::` of a name, as TICO writes it. Names without `::` stay.
    The filter changes the first graph and all graphs with a signature. --signature chooses one graph.
    Refused: a model without namespaces, and a change that makes two names equal.
    """

    name = "rename.io.remove_namespace.py"
    purpose = "Inputs and outputs"
    input_formats = ALL_FORMATS
    usage_example = "rename.io.remove_namespace.py < in.circle > out.circle"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add_signature(parser)

    def apply(self, model: Model, args: argparse.Namespace) -> None:
        graphs = entry_graphs(model, args.signature)
        changed = sum(len(rename_io(model, graph, io, _without_namespace)) for graph in graphs for io in IO)
        if not changed:
            raise UsageError("no input or output has a name with `::`")
        self.log(f"removed the namespace from {counted(changed, 'name')}")

    def expected(self, models: Sequence[Model], args: argparse.Namespace) -> Expected:
        from o2o.check.interface import renamed

        def rename(name: str) -> str | None:
            namespace, _, rest = name.rpartition("::")
            return rest if namespace and rest else None

        return renamed(models, rename, [*IO], args.signature)


def _without_namespace(name: str) -> str | None:
    """The new name, or None to keep it."""
    start = name.rfind("::")
    return name[start + 2 :] or None if start > 0 else None


main = RenameIoRemoveNamespace.main
