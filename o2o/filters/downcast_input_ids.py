"""`downcast.input_ids.py`."""

from __future__ import annotations

import argparse

import onnx_ir as ir

from o2o.contract import role_of
from o2o.errors import ModelError, UsageError
from o2o.filters.base import Filter
from o2o.formats.schema import DIALECTS
from o2o.model import DOMAIN, Model, shape_of
from o2o.rewriting.build import Builder
from o2o.rewriting.selectors import entry_graphs, names, names_of
from o2o.summary import dtype_name
from o2o.wording import listed

INT32, INT64 = ir.DataType.INT32, ir.DataType.INT64
TOKEN_NAMES = {"input_ids", "tokens"}  # of an input whose role nobody told

# (operator, operand) that take indices of either width.
INDICES = {("GATHER", 1), ("EMBEDDING_LOOKUP", 0)}


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
            "--also", type=names, action="append", metavar="A,B", help="other inputs to downcast"
        )

    def apply(self, model: Model, args: argparse.Namespace) -> None:
        also = {name for group in args.also or () for name in group}
        inputs = [(graph, value) for graph in entry_graphs(model, None) for value in graph.inputs]
        called = {value: set(names_of(model, graph, value, "input")) for graph, value in inputs}
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
            self.say(f"{told} is int32 already")
            return
        if value.dtype != INT64:
            raise ModelError(f"{told} is {dtype_name(value)}, not int64")
        if value.is_graph_output():
            raise ModelError(f"{told} cannot become int32: it is also an output")
        casts = _downcast(model, graph, value)
        self.say(f"{told} is int32 now{', and cast for other users' if casts else ''}")


def _tokens(called: dict[ir.Value, set[str]]) -> set[ir.Value]:
    """The inputs that are token ids: by role, and if nothing has a role by name."""
    roles = {value: role_of(value) for value in called}
    if any(role is not None for role in roles.values()):
        return {value for value, role in roles.items() if role is not None and role.kind == "tokens"}
    return {value for value, found in called.items() if found & TOKEN_NAMES}


def _downcast(model: Model, graph: ir.Graph, value: ir.Value) -> bool:
    """Make `value` int32 and let its users agree; whether one needs int64 through a new CAST."""
    code = DIALECTS[model.format].dtype_codes[INT32]
    value.type = ir.TensorType(INT32)
    others = []
    for use in value.uses():
        if use.node.domain != DOMAIN:
            others.append(use)
        elif use.node.op_type == "CAST":
            result = use.node.outputs[0]
            if result.dtype == INT32 and not result.is_graph_output():
                result.replace_all_uses_with(value)
                graph.remove(use.node, safe=True)
            else:
                use.node.attributes["inDataType"] = ir.AttrInt64("inDataType", code)
        elif (use.node.op_type, use.idx) not in INDICES:
            others.append(use)
    if not others:
        return False
    users = {use.node for use in others}
    op = Builder(graph, before=next(node for node in graph if node in users))
    codes = {"inDataType": code, "outDataType": DIALECTS[model.format].dtype_codes[INT64]}
    wide = op.node("CAST", [value], shape_of(value), INT64, f"{value.name}_int64", **codes)
    for use in others:
        use.node.replace_input_with(use.idx, wide)
    return True


main = DowncastInputIds.main
