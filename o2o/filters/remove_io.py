"""`remove.io.py`."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from o2o.cli.arguments import add_io, add_signature, id_list, name_list
from o2o.cli.text import counted
from o2o.errors import ModelError
from o2o.filters.base import ALL_FORMATS, Filter
from o2o.model import Model, Signature, users
from o2o.rewriting.dead_code_elimination import live_nodes
from o2o.rewriting.rewire import IoKind, io_values, set_io_values, sync_signatures
from o2o.rewriting.selectors import entry_graphs, io_positions

if TYPE_CHECKING:
    from o2o.check.interface import Expected, ExpectedSignature, Tensors


class RemoveIo(Filter):
    """Remove inputs or outputs: keep only those named, in their order.

        x -- f -+- logits                    x -- f --- logits
                +- g -- hidden        =>           +- g            (gc.py removes g)
                     remove.io.py output --keep_by_name logits

    Signatures lose the same names. gc.py removes the operators that only a removed output needs.
    The filter changes every graph that has all inputs or outputs to keep. --signature chooses one graph.
    An input of ONNX that has a default becomes a constant.
    Refused: an input to remove that an operator or an output uses, and a name or number that does not exist.
    """

    name = "remove.io.py"
    purpose = "Inputs and outputs"
    input_formats = ALL_FORMATS
    usage_example = "remove.io.py output --keep_by_name logits < in.circle | gc.py > out.circle"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add_io(parser)
        choice = parser.add_mutually_exclusive_group(required=True)
        choice.add_argument("--keep_by_name", type=name_list, metavar="A,B", help="names to keep")
        choice.add_argument("--keep_by_id", type=id_list, metavar="0,2-4", help="positions to keep, from 0")
        add_signature(parser)

    def apply(self, model: Model, args: argparse.Namespace) -> None:
        graphs = entry_graphs(model, args.signature)
        chosen = io_positions(model, graphs, args.io, args.keep_by_id, args.keep_by_name)
        for graph, keep in chosen.items():
            removed = _remove(graph, args.io, set(keep))
            sync_signatures(model, graph)
            self.log(f"{model.label(graph)}: kept {counted(len(set(keep)), args.io)}, removed {removed}")

    def expected(self, models: Sequence[Model], args: argparse.Namespace) -> Expected:
        from o2o.check.interface import signature_of, unchanged, with_inputs, with_outputs

        def remaining(expected: ExpectedSignature) -> Tensors:
            signature = signature_of(models, expected)
            values = list(signature.graph.inputs if args.io == "input" else signature.graph.outputs)
            public = signature.inputs if args.io == "input" else signature.outputs
            tensors = expected.inputs if args.io == "input" else expected.outputs
            names = [
                {value.name} | {n for s in models[0].signatures_of(signature.graph) for n in _named(s, value)}
                for value in values
            ]
            if args.keep_by_name is not None:
                wanted = [v for v, own in zip(values, names, strict=True) if own & set(args.keep_by_name)]
            else:
                wanted = [value for index, value in enumerate(values) if index in args.keep_by_id]
            count = len(set(args.keep_by_id if args.keep_by_name is None else args.keep_by_name))
            if args.signature not in (None, expected.source) or len(wanted) < count:
                return tensors  # the filter leaves graphs alone that lack some of them
            return {name: tensor for name, tensor in tensors.items() if public[name] in wanted}

        change = with_inputs if args.io == "input" else with_outputs
        return change(unchanged(models), remaining)


def _named(signature: Signature, value: ir.Value) -> list[str]:
    """The public names of an input or output."""
    pairs = (*signature.inputs.items(), *signature.outputs.items())
    return [name for name, other in pairs if other is value]


def _remove(graph: ir.Graph, io: IoKind, keep: Collection[int]) -> int:
    values = io_values(graph, io)
    removed = [value for index, value in enumerate(values) if index not in keep]
    if io == "input":
        for value in removed:
            _check_unused(graph, value)
    set_io_values(graph, io, [value for index, value in enumerate(values) if index in keep])
    return len(removed)


def _check_unused(graph: ir.Graph, value: ir.Value) -> None:
    cannot = f"cannot remove the input {value.name}"
    if value.is_graph_output():
        raise ModelError(f"{cannot}: it is also an output")
    if value.is_initializer():  # ONNX: an input with a default becomes a constant
        return
    live = live_nodes(graph)
    for node in sorted(users(value, graph), key=lambda node: node not in live):
        user = f"{node.op_type} {node.outputs[0].name if node.outputs else ''}".strip()
        hint = "" if node in live else ", although no output needs that: run gc.py first"
        raise ModelError(f"{cannot}: {user} uses it{hint}")


main = RemoveIo.main
