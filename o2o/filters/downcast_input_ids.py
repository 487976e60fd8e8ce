"""`downcast.input_ids.py`."""

from __future__ import annotations

import argparse

import onnx_ir as ir

from o2o.cli.arguments import name_list
from o2o.cli.text import listed
from o2o.contract import role_of
from o2o.errors import UsageError
from o2o.filters.base import Filter
from o2o.model import Model
from o2o.rewriting.downcast_inputs import INT32, downcast_input
from o2o.rewriting.selectors import entry_graphs, io_names

TOKEN_NAMES = {"input_ids", "tokens"}  # of an input whose role nobody told


class DowncastInputIds(Filter):
    """Make the token ids an input of int32 where they are int64.

        input_ids int64 -+- GATHER         input_ids int32 -+- GATHER
                         +- ADD       =>                    +- CAST int64 - ADD

    GATHER and EMBEDDING_LOOKUP take either, a CAST is adjusted (or goes, when all it did was this), and
    other operators get the ids through one CAST. In every graph with a signature, and the first. The ids
    are the input whose role is `tokens`; without a contract the one called input_ids or tokens.
    --also names other inputs, such as positions. One that is int32 already stays.
    Refused: an input that is also an output, or is no integer; a model without token ids.
    """

    name = "downcast.input_ids.py"
    usage_example = "downcast.input_ids.py --also cache_position < in.circle > out.circle"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--also",
            type=name_list,
            action="extend",
            default=[],
            metavar="A,B",
            help="other inputs to downcast",
        )

    def apply(self, model: Model, args: argparse.Namespace) -> None:
        also = set(args.also)
        inputs = [(graph, value) for graph in entry_graphs(model, None) for value in graph.inputs]
        called = {value: set(io_names(model, graph, value, "input")) for graph, value in inputs}
        there = listed(list(dict.fromkeys(value.name or "" for _, value in inputs))) or "none at all"
        for name in sorted(also):
            if not any(name in found for found in called.values()):
                raise UsageError(f"there is no input {name!r}; there are: {there}")
        tokens = _tokens(called)
        if not tokens:
            raise UsageError(
                f"no input has the role tokens or is called input_ids or tokens; there are: {there}"
            )
        for graph, value in inputs:
            if value in tokens or called[value] & also:
                self._downcast(model, graph, value)

    def _downcast(self, model: Model, graph: ir.Graph, value: ir.Value) -> None:
        told = f"{model.label(graph)}: {value.name}"
        if value.dtype == INT32:
            self.log(f"{told} is int32 already")
            return
        casts = downcast_input(model, graph, value)
        self.log(f"{told} is int32 now{', and cast for other users' if casts else ''}")


def _tokens(called: dict[ir.Value, set[str]]) -> set[ir.Value]:
    """The inputs that are token ids: by role, and if nothing has a role by name."""
    roles = {value: role_of(value) for value in called}
    if any(role is not None for role in roles.values()):
        return {value for value, role in roles.items() if role is not None and role.kind == "tokens"}
    return {value for value, found in called.items() if found & TOKEN_NAMES}


main = DowncastInputIds.main
