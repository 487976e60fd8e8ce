"""`downcast.input_ids.py`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from o2o.cli.arguments import name_list
from o2o.cli.text import listed
from o2o.contract import role_of
from o2o.errors import UsageError
from o2o.filters.base import ALL_FORMATS, Filter
from o2o.model import Model
from o2o.rewriting.downcast_inputs import INT32, downcast_input
from o2o.rewriting.selectors import entry_graphs, io_names
from o2o.roles.positions import integer_inputs

if TYPE_CHECKING:
    from o2o.check.interface import Expected, ExpectedSignature, Tensors

TOKEN_NAMES = {"input_ids", "tokens"}  # of token ids in a model without roles


class DowncastInputIds(Filter):
    """Change the token ids from int64 to int32.

        input_ids int64 -+- GATHER         input_ids int32 -+- GATHER
                         +- ADD       =>                    +- CAST int64 - ADD

    GATHER and EMBEDDING_LOOKUP take either type. A CAST of the ids is adjusted, or removed if it has become
    superfluous. All other operators get the ids through one CAST.
    The token ids are the input with the role `tokens`. Without a contract they are the integer inputs that
    index an embedding, by data flow, and are no position; else the input called input_ids or tokens.
    --also names other inputs, such as positions. An input that is int32 already stays.
    The filter changes the first graph and all graphs with a signature. An output that is such an input itself
    stays int64, through a CAST.
    Refused: an input that is no integer, and a model without token ids. Older name: retype.input_ids.py.
    """

    name = "downcast.input_ids.py"
    purpose = "Inputs and outputs"
    input_formats = ALL_FORMATS
    usage_example = "downcast.input_ids.py --also cache_position < in.circle > out.circle"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--also",
            type=name_list,
            action="extend",
            default=[],
            metavar="A,B",
            help="other inputs to change",
        )

    def apply(self, model: Model, args: argparse.Namespace) -> None:
        also = set(args.also)
        inputs = [(graph, value) for graph in entry_graphs(model, None) for value in graph.inputs]
        names = {value: set(io_names(model, graph, value, "input")) for graph, value in inputs}
        there = listed(value.name or "" for _, value in inputs) or "none"
        for name in sorted(also):
            if not any(name in known for known in names.values()):
                raise UsageError(f"there is no input {name!r}; there are: {there}")
        tokens = _tokens(model)
        if not tokens and not also:
            raise UsageError(f"no input is token ids, by role, data flow or name; there are: {there}")
        for graph, value in inputs:
            if value in tokens or names[value] & also:
                self._downcast(model, graph, value)

    def expected(self, models: Sequence[Model], args: argparse.Namespace) -> Expected:
        from o2o.check.interface import signature_of, unchanged, with_inputs

        (model,) = models
        tokens = set()  # without the filter's own step
        for graph in entry_graphs(model, None):
            roles = {value: role for value in graph.inputs if (role := role_of(value)) is not None}
            known = [value for value, role in roles.items() if role.kind == "tokens"]
            named = [v for v in graph.inputs if TOKEN_NAMES & set(io_names(model, graph, v, "input"))]
            tokens.update(known or integer_inputs(graph).tokens or named)
        names = {
            value: set(io_names(model, graph, value, "input"))
            for graph in model.graphs
            for value in graph.inputs
        }

        def downcast(expected: ExpectedSignature) -> Tensors:
            inputs = signature_of(models, expected).inputs
            return {
                name: replace(tensor, dtype=np.dtype(np.int32))
                if (value := inputs[name]) in tokens or names[value] & set(args.also)
                else tensor
                for name, tensor in expected.inputs.items()
            }

        return with_inputs(unchanged(models), downcast)

    def _downcast(self, model: Model, graph: ir.Graph, value: ir.Value) -> None:
        label = f"{model.label(graph)}: {value.name}"
        if value.dtype == INT32:
            self.log(f"{label} is int32 already")
            return
        casts = downcast_input(model, graph, value)
        self.log(f"{label} is int32 now{', with a CAST for other users' if casts else ''}")


def _tokens(model: Model) -> set[ir.Value]:
    """The token ids of each graph: by role, else by data flow, else by name."""
    tokens: set[ir.Value] = set()
    for graph in entry_graphs(model, None):
        by_role = [v for v in graph.inputs if (role := role_of(v)) is not None and role.kind == "tokens"]
        by_name = [v for v in graph.inputs if TOKEN_NAMES & set(io_names(model, graph, v, "input"))]
        tokens.update(by_role or integer_inputs(graph).tokens or by_name)
    return tokens


main = DowncastInputIds.main
