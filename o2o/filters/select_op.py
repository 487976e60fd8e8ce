"""`select.op.py`."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from o2o.cli.arguments import add_signature, id_list, name_list
from o2o.cli.text import counted, listed
from o2o.errors import UsageError
from o2o.filters.base import Filter
from o2o.model import Model
from o2o.rewriting.boundaries import find_tensors, nodes_on_paths
from o2o.rewriting.builder import fresh_name
from o2o.rewriting.rewire import set_io_values, sync_signatures
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
        count = len(graph)
        selected, inputs, outputs = _chosen(model, graph, args)
        select(model, graph, selected, inputs, outputs)
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
        return {nodes[index] for index in args.by_id}, [], None
    sources = find_tensors(model, graph, args.sources) if args.sources is not None else None
    targets = find_tensors(model, graph, args.targets) if args.targets is not None else None
    selected = nodes_on_paths(graph, sources, targets)
    if targets is None:
        targets = [value for value in graph.outputs if value.producer() in selected]
    return selected, sources or [], targets


def select(
    model: Model,
    graph: ir.Graph,
    nodes: Collection[ir.Node],
    first: Sequence[ir.Value] = (),
    outputs: Sequence[ir.Value] | None = None,
) -> None:
    """Remove all other nodes of a graph, and make inputs and outputs where that cuts it.

    Args:
        model: Has the signatures.
        graph: One of its graphs.
        nodes: The nodes to keep.
        first: Tensors that become its first inputs, although a node to keep may compute them.
        outputs: Its outputs. None: the old ones that remain, and the tensors that removed nodes used.
    """
    removed = [node for node in graph if node not in nodes]
    unused_before = {value for value in graph.inputs if not value.uses()} if outputs is None else set()
    if outputs is None:
        old = [value for value in graph.outputs if value.producer() is None or value.producer() in nodes]
        outputs = [*old, *_crossing_out(graph, nodes)]
    crossing = [*(value for value in first if not value.is_graph_input()), *_crossing_in(graph, nodes)]
    replaced = {value: _as_input(value) for value in dict.fromkeys(crossing)}
    for value, new in replaced.items():
        for use in list(value.uses()):
            if use.node in nodes:
                use.node.replace_input_with(use.idx, new)
        if value.producer() in nodes:  # a result beside others of its operator
            value.name = fresh_name(graph, f"{value.name}_inner")
    set_io_values(graph, "output", outputs)
    graph.remove(removed, safe=True)
    leading = [replaced.get(value, value) for value in first]
    inputs = [v for v in graph.inputs if v.uses() or v.is_graph_output() or v in unused_before]
    set_io_values(graph, "input", list(dict.fromkeys([*leading, *inputs, *replaced.values()])))
    graph.meta.pop("names", None)
    sync_signatures(model, graph, name_all=True)


def _crossing_out(graph: ir.Graph, nodes: Collection[ir.Node]) -> list[ir.Value]:
    """The values that `nodes` compute and other nodes use, except outputs of the graph."""
    return [
        value
        for node in graph
        if node in nodes
        for value in node.outputs
        if any(user not in nodes for user in value.consumers()) and not value.is_graph_output()
    ]


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
