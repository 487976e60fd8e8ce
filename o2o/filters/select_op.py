"""`select.op.py`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from o2o.cli.arguments import add_signature, id_list, name_list
from o2o.cli.text import counted, listed
from o2o.errors import UsageError
from o2o.filters.base import ALL_FORMATS, Filter
from o2o.formats.tensors import is_constant_node
from o2o.model import Model, operands
from o2o.operators.onnx_shape_inference import infer_shapes
from o2o.rewriting.boundaries import find_tensors, nodes_on_paths
from o2o.rewriting.extraction import extract
from o2o.rewriting.selectors import entry_graphs

if TYPE_CHECKING:
    from o2o.check.interface import Expected


class SelectOp(Filter):
    """Keep only some operators of a graph, and cut the graph around them.

        x -- 0 FC -- a -- 1 ADD -- b -- 2 MUL -- y    =>    a -- 1 ADD -- b
                        select.op.py --by_id 1
                        select.op.py --from a --to b

    --by_id: operators are numbered from 0 in the order of the graph. A tensor that only a removed operator
    computes becomes an input. A tensor that a removed operator used becomes an output. New inputs and outputs
    come after the old ones. Inputs that have become unused are removed.
    --from and --to: the operators on the paths from some tensors to others stay. Names may be patterns, such
    as `model.layers.0*`. Without --from the part begins at the inputs, without --to it stops at the outputs.
    The outputs are exactly the tensors of --to. The inputs are the tensors of --from, and all others that the
    operators need, which a message names. Constants stay, with operators that depend on constants alone.
    Signatures and other graphs are kept.
    Refused: numbers beyond the last operator, names that do not exist, tensors that no path connects, and a
    model of several graphs without --signature.
    """

    name = "select.op.py"
    purpose = "Combine, cut, clean up, inspect"
    input_formats = ALL_FORMATS
    usage_example = "select.op.py --from model.embed_tokens --to logits < in.circle > part.circle"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--by_id", type=id_list, metavar="0-2,7", help="keep these operators")
        parser.add_argument(
            "--from",
            dest="sources",
            type=name_list,
            action="extend",
            metavar="A,B",
            help="tensors, or patterns, where the part begins",
        )
        parser.add_argument(
            "--to",
            dest="targets",
            type=name_list,
            action="extend",
            metavar="A,B",
            help="tensors, or patterns, that the part computes",
        )
        add_signature(parser)

    def check_arguments(self, args: argparse.Namespace) -> None:
        by_name = args.sources is not None or args.targets is not None
        if by_name == (args.by_id is not None):
            raise UsageError("give either --by_id, or --from and --to (--help explains)")

    def apply(self, model: Model, args: argparse.Namespace) -> None:
        graphs = entry_graphs(model, args.signature)
        if len(graphs) > 1:
            labels = listed([model.label(graph) for graph in graphs])
            raise UsageError(f"there are several graphs ({labels}): choose one with --signature")
        graph = graphs[0]
        if model.format == "onnx":
            infer_shapes(model)  # a tensor at the cut needs a type
        count = len(graph)
        selected, inputs, outputs = _chosen(model, graph, args)
        extract(model, graph, selected, inputs, outputs)
        self.log(
            f"{model.label(graph)}: kept {len(selected)} of {count} operators; "
            f"{counted(len(graph.inputs), 'input')}, {counted(len(graph.outputs), 'output')}"
        )
        if outputs is not None:
            names = {value.name for value in inputs}
            others = [value.name or "" for value in graph.inputs if value.name not in names]
            if others and args.sources is not None:
                self.log(f"it needs these inputs too: {listed(others)}")

    def expected(self, models: Sequence[Model], args: argparse.Namespace) -> Expected:
        from o2o.check.interface import part, signature_of, unchanged

        if models[0].format == "onnx":
            infer_shapes(models[0])
        expected = unchanged(models)
        name = args.signature if args.signature is not None else expected[0].name
        graph = next(signature_of(models, entry).graph for entry in expected if entry.name == name)
        selected, inputs, outputs = _chosen(models[0], graph, args)
        return [
            part(models, entry, [node for node in graph if node in selected], inputs, outputs)
            if signature_of(models, entry).graph is graph
            else entry
            for entry in expected
        ]


def _chosen(
    model: Model, graph: ir.Graph, args: argparse.Namespace
) -> tuple[set[ir.Node], list[ir.Value], list[ir.Value] | None]:
    """The operators that stay, the inputs that come first, and the outputs; None for those that follow.

    Raises UsageError.
    """
    if args.by_id is not None:
        nodes = list(graph)
        if (last := max(args.by_id)) >= len(nodes):
            there = f"the last one is {len(nodes) - 1}" if nodes else "there are none"
            raise UsageError(f"{model.label(graph)} has no operator {last}; {there}")
        return _with_constants({nodes[index] for index in args.by_id}), [], None
    sources = find_tensors(model, graph, args.sources) if args.sources is not None else None
    targets = find_tensors(model, graph, args.targets) if args.targets is not None else None
    selected = nodes_on_paths(graph, sources, targets)
    if targets is None:
        targets = [value for value in graph.outputs if value.producer() in selected]
    return _with_constants(selected), sources or [], targets


def _with_constants(nodes: set[ir.Node]) -> set[ir.Node]:
    """Some operators, and the `Constant`s of ONNX that these read."""
    producers = (value.producer() for node in nodes for value in operands(node))
    return nodes | {node for node in producers if node is not None and is_constant_node(node)}


main = SelectOp.main
