"""`reorder.output.py`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from o2o.cli.arguments import add_signature, id_list, name_list
from o2o.cli.text import listed
from o2o.errors import UsageError
from o2o.filters.base import ALL_FORMATS, Filter
from o2o.model import Model
from o2o.rewriting.rewire import set_io_values, sync_signatures
from o2o.rewriting.selectors import entry_graphs, io_positions

if TYPE_CHECKING:
    from o2o.check.interface import Expected, ExpectedSignature, Tensors


class ReorderOutput(Filter):
    """Reorder the outputs, in the graph and in its signatures.

        f -+- 0 key                    f -+- 0 logits
           +- 1 value           =>        +- 1 key
           +- 2 logits                    +- 2 value
              reorder.output.py --by_name logits,key,value        (or --by_id 2,0,1)

    Name every output once; remove.io.py removes outputs.
    The filter changes every graph that has these outputs. --signature chooses one graph.
    Refused: a name or number that does not exist, is missing, or is repeated.
    """

    name = "reorder.output.py"
    purpose = "Inputs and outputs"
    input_formats = ALL_FORMATS
    usage_example = "reorder.output.py --by_name logits,key_0,value_0 < in.circle > out.circle"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        choice = parser.add_mutually_exclusive_group(required=True)
        choice.add_argument("--by_name", type=name_list, metavar="A,B", help="names in the new order")
        choice.add_argument(
            "--by_id", type=id_list, metavar="2,0,1", help="present positions in the new order"
        )
        add_signature(parser)

    def apply(self, model: Model, args: argparse.Namespace) -> None:
        graphs = entry_graphs(model, args.signature)
        for graph, order in io_positions(model, graphs, "output", args.by_id, args.by_name).items():
            _check_permutation(model.label(graph), graph, order)
            reorder(model, graph, order)
            self.log(f"{model.label(graph)}: {listed([value.name or '' for value in graph.outputs])}")

    def expected(self, models: Sequence[Model], args: argparse.Namespace) -> Expected:
        from o2o.check.interface import signature_of, unchanged, with_outputs

        def reordered(expected: ExpectedSignature) -> Tensors:
            signature = signature_of(models, expected)
            values = list(signature.graph.outputs)
            if args.signature not in (None, expected.source):
                return expected.outputs
            if args.by_id is not None:
                wanted = [values[index] for index in args.by_id if index < len(values)]
            else:
                known = {value.name: value for value in values}
                known |= {name: v for name, v in signature.outputs.items() if name not in known}
                wanted = [known[name] for name in args.by_name if name in known]
            if len(wanted) < len(values):
                return expected.outputs
            return {n: t for v in wanted for n, t in expected.outputs.items() if signature.outputs[n] is v}

        return with_outputs(unchanged(models), reordered)


def reorder(model: Model, graph: ir.Graph, order: list[int]) -> None:
    """Reorder the outputs of a graph, also in its signatures.

    Args:
        model: Has the signatures.
        graph: One of its graphs.
        order: Output `order[i]` becomes output i.
    """
    outputs = list(graph.outputs)
    set_io_values(graph, "output", [outputs[index] for index in order])
    sync_signatures(model, graph)


def _check_permutation(label: str, graph: ir.Graph, order: list[int]) -> None:
    names = [value.name or "" for value in graph.outputs]
    for index in order:
        if order.count(index) > 1:
            raise UsageError(
                f"output {index} ({names[index]}) of {label} is named {order.count(index)} times"
            )
    if missing := [f"{index} ({name})" for index, name in enumerate(names) if index not in order]:
        raise UsageError(
            f"the new order of {label} lacks output {listed(missing)}; remove.io.py removes outputs"
        )


main = ReorderOutput.main
