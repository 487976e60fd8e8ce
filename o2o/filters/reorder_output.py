"""`reorder.output.py`."""

from __future__ import annotations

import argparse

import onnx_ir as ir

from o2o.cli.arguments import add_signature, id_list, name_list
from o2o.cli.text import listed
from o2o.errors import UsageError
from o2o.filters.base import Filter
from o2o.model import Model
from o2o.rewriting.rewire import set_io_values, sync_signatures
from o2o.rewriting.selectors import entry_graphs, io_positions


class ReorderOutput(Filter):
    """Put the outputs in another order, in the graph and in its signatures.

        f -+- 0 key                    f -+- 0 logits
           +- 1 value           =>        +- 1 key
           +- 2 logits                    +- 2 value
              reorder.output.py --by_name logits,key,value        (or --by_id 2,0,1)

    Every output is to be named once: what is not wanted goes with remove.io.py.
    With several graphs, all are meant that have these outputs; --signature chooses one.
    Refused: a name or number that is not there, is missing, or comes twice.
    """

    name = "reorder.output.py"
    usage_example = "reorder.output.py --by_name logits,key_0,value_0 < in.circle > out.circle"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        choice = parser.add_mutually_exclusive_group(required=True)
        choice.add_argument("--by_name", type=name_list, metavar="A,B", help="the names in their new order")
        choice.add_argument(
            "--by_id", type=id_list, metavar="2,0,1", help="the present positions in their new order"
        )
        add_signature(parser)

    def apply(self, model: Model, args: argparse.Namespace) -> None:
        graphs = entry_graphs(model, args.signature)
        for graph, order in io_positions(model, graphs, "output", args.by_id, args.by_name).items():
            _check_permutation(model.label(graph), graph, order)
            reorder(model, graph, order)
            self.log(f"{model.label(graph)}: {listed([value.name or '' for value in graph.outputs])}")


def reorder(model: Model, graph: ir.Graph, order: list[int]) -> None:
    """Let output `order[i]` of `graph` become output i, also in its signatures."""
    outputs = list(graph.outputs)
    set_io_values(graph, "output", [outputs[index] for index in order])
    sync_signatures(model, graph)


def _check_permutation(label: str, graph: ir.Graph, order: list[int]) -> None:
    told = [value.name or "" for value in graph.outputs]
    for index in order:
        if order.count(index) > 1:
            raise UsageError(f"output {index} ({told[index]}) of {label} comes {order.count(index)} times")
    if missing := [f"{index} ({name})" for index, name in enumerate(told) if index not in order]:
        raise UsageError(
            f"the new order of {label} lacks output {listed(missing)}; remove.io.py removes outputs"
        )


main = ReorderOutput.main
