"""`select.op.py`."""

from __future__ import annotations

import argparse
from collections.abc import Collection

import onnx_ir as ir

from o2o.cli.arguments import add_signature, id_list
from o2o.cli.text import counted, listed
from o2o.errors import UsageError
from o2o.filters.base import Filter
from o2o.model import Model
from o2o.rewriting.rewire import set_io_values, sync_signatures
from o2o.rewriting.selectors import entry_graphs


class SelectOp(Filter):
    """Keep only some operators of a graph, with inputs and outputs where it is cut.

        x -- 0 FC -- a -- 1 ADD -- b -- 2 MUL -- y    =>    a -- 1 ADD -- b
                        select.op.py --by_id 1

    Operators count from 0 in the order of the graph. What is used but no longer made becomes an input, what
    an operator that went used becomes an output; both come after the inputs and outputs that stay. Inputs
    that nothing uses any more go. Signatures follow; other graphs stay as they are.
    Refused: numbers beyond the last operator; a model of several graphs without --signature.
    """

    name = "select.op.py"
    usage_example = "select.op.py --by_id 0-181,200 < in.circle > part.circle"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--by_id", type=id_list, required=True, metavar="0-2,7", help="the operators to keep"
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
        chosen = set(args.by_id)
        kept = {node for index, node in enumerate(nodes) if index in chosen}
        select(model, graph, kept)
        ends = f"{counted(len(graph.inputs), 'input')}, {counted(len(graph.outputs), 'output')}"
        self.log(f"{model.label(graph)}: kept {len(kept)} of {len(nodes)} operators; {ends}")


def select(model: Model, graph: ir.Graph, kept: Collection[ir.Node]) -> None:
    """Remove all nodes of `graph` but `kept`, and let its ends be where that cuts it."""
    gone = [node for node in graph if node not in kept]
    unused_before = {value for value in graph.inputs if not value.uses()}
    crossing_out = [
        value
        for node in graph
        if node in kept
        for value in node.outputs
        if any(user not in kept for user in value.consumers()) and not value.is_graph_output()
    ]
    outputs = [value for value in graph.outputs if value.producer() is None or value.producer() in kept]
    replaced = {value: _as_input(value) for value in _crossing_in(graph, kept)}
    for value, new in replaced.items():
        for use in value.uses():
            if use.node in kept:
                use.node.replace_input_with(use.idx, new)
    set_io_values(graph, "output", [*outputs, *crossing_out])
    graph.remove(gone, safe=True)
    inputs = [v for v in graph.inputs if v.uses() or v.is_graph_output() or v in unused_before]
    set_io_values(graph, "input", [*inputs, *replaced.values()])
    graph.meta.pop("names", None)
    sync_signatures(model, graph, name_all=True)


def _crossing_in(graph: ir.Graph, kept: Collection[ir.Node]) -> list[ir.Value]:
    """What `kept` nodes use and others make, in the order of use."""
    found = [
        value
        for node in graph
        if node in kept
        for value in node.inputs
        if value is not None and (producer := value.producer()) is not None and producer not in kept
    ]
    return list(dict.fromkeys(found))


def _as_input(value: ir.Value) -> ir.Value:
    new = ir.Value(name=value.name, shape=value.shape, type=value.type)
    new.meta.update({key: item for key, item in value.meta.items() if key != "role"})
    return new


main = SelectOp.main
