"""`select.op.py`."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from o2o.cli.arguments import add_signature, id_list
from o2o.cli.text import counted, listed
from o2o.errors import UsageError
from o2o.filters.base import Filter
from o2o.model import Model
from o2o.rewriting.rewire import set_io_values, sync_signatures
from o2o.rewriting.selectors import entry_graphs

if TYPE_CHECKING:
    from o2o.check.interface import Expected


class SelectOp(Filter):
    """Keep only some operators of a graph, and cut the graph around them.

        x -- 0 FC -- a -- 1 ADD -- b -- 2 MUL -- y    =>    a -- 1 ADD -- b
                        select.op.py --by_id 1

    Operators are numbered from 0 in the order of the graph. A tensor that only a removed operator computes
    becomes an input. A tensor that a removed operator used becomes an output. New inputs and outputs come
    after the old ones. Inputs that have become unused are removed. Signatures and other graphs are kept.
    Refused: numbers beyond the last operator, and a model of several graphs without --signature.
    """

    name = "select.op.py"
    purpose = "Combine, cut, clean up, inspect"
    usage_example = "select.op.py --by_id 0-181,200 < in.circle > part.circle"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--by_id", type=id_list, required=True, metavar="0-2,7", help="keep these operators"
        )
        add_signature(parser)

    def apply(self, model: Model, args: argparse.Namespace) -> None:
        graphs = entry_graphs(model, args.signature)
        if len(graphs) > 1:
            labels = listed([model.label(graph) for graph in graphs])
            raise UsageError(f"there are several graphs ({labels}): choose one with --signature")
        graph = graphs[0]
        nodes = list(graph)
        if (last := max(args.by_id)) >= len(nodes):
            there = f"the last one is {len(nodes) - 1}" if nodes else "there are none"
            raise UsageError(f"{model.label(graph)} has no operator {last}; {there}")
        selected = {nodes[index] for index in args.by_id}
        select(model, graph, selected)
        self.log(
            f"{model.label(graph)}: kept {len(selected)} of {len(nodes)} operators; "
            f"{counted(len(graph.inputs), 'input')}, {counted(len(graph.outputs), 'output')}"
        )

    def expected(self, models: Sequence[Model], args: argparse.Namespace) -> Expected:
        from o2o.check.interface import part, signature_of, unchanged

        expected = unchanged(models)
        name = args.signature if args.signature is not None else expected[0].name
        graph = next(signature_of(models, entry).graph for entry in expected if entry.name == name)
        selected = [node for index, node in enumerate(graph) if index in args.by_id]
        return [
            part(models, entry, selected) if signature_of(models, entry).graph is graph else entry
            for entry in expected
        ]


def select(model: Model, graph: ir.Graph, nodes: Collection[ir.Node]) -> None:
    """Remove all other nodes of a graph, and make inputs and outputs where that cuts it.

    Args:
        model: Has the signatures.
        graph: One of its graphs.
        nodes: The nodes to keep.
    """
    removed = [node for node in graph if node not in nodes]
    unused_before = {value for value in graph.inputs if not value.uses()}
    crossing_out = [
        value
        for node in graph
        if node in nodes
        for value in node.outputs
        if any(user not in nodes for user in value.consumers()) and not value.is_graph_output()
    ]
    outputs = [value for value in graph.outputs if value.producer() is None or value.producer() in nodes]
    replaced = {value: _as_input(value) for value in _crossing_in(graph, nodes)}
    for value, new in replaced.items():
        for use in value.uses():
            if use.node in nodes:
                use.node.replace_input_with(use.idx, new)
    set_io_values(graph, "output", [*outputs, *crossing_out])
    graph.remove(removed, safe=True)
    inputs = [v for v in graph.inputs if v.uses() or v.is_graph_output() or v in unused_before]
    set_io_values(graph, "input", [*inputs, *replaced.values()])
    graph.meta.pop("names", None)
    sync_signatures(model, graph, name_all=True)


def _crossing_in(graph: ir.Graph, nodes: Collection[ir.Node]) -> list[ir.Value]:
    """The values that `nodes` use and other nodes compute, in the order of use."""
    crossing = [
        value
        for node in graph
        if node in nodes
        for value in node.inputs
        if value is not None and (producer := value.producer()) is not None and producer not in nodes
    ]
    return list(dict.fromkeys(crossing))


def _as_input(value: ir.Value) -> ir.Value:
    new = ir.Value(name=value.name, shape=value.shape, type=value.type)
    new.meta.update({key: item for key, item in value.meta.items() if key != "role"})
    return new


main = SelectOp.main
