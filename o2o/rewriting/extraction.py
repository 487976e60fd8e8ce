"""Extraction: some operators of a graph stay, and the tensors at the cuts become inputs and outputs."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx_ir as ir

from o2o.model import Model, operands, owners, remove_nodes, users
from o2o.rewriting.builder import fresh_name
from o2o.rewriting.rewire import set_io_values, sync_signatures


def extract(
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
    outer = owners(graph)
    replaced = {value: _as_input(value) for value in dict.fromkeys(crossing)}
    for value, new in replaced.items():
        for use in list(value.uses()):
            if outer.get(id(use.node.graph), use.node) in nodes:
                use.node.replace_input_with(use.idx, new)
        if value.producer() in nodes:  # a result beside others of its operator
            value.name = fresh_name(graph, f"{value.name}_inner")
    set_io_values(graph, "output", outputs)
    remove_nodes(graph, removed)
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
        if any(user not in nodes for user in users(value, graph)) and not value.is_graph_output()
    ]


def _crossing_in(graph: ir.Graph, nodes: Collection[ir.Node]) -> list[ir.Value]:
    """The values that `nodes` use and other nodes compute, in the order of use."""
    crossing = [
        value
        for node in graph
        if node in nodes
        for value in operands(node)
        if (producer := value.producer()) is not None and producer not in nodes
    ]
    return list(dict.fromkeys(crossing))


def _as_input(value: ir.Value) -> ir.Value:
    new = ir.Value(name=value.name, shape=value.shape, type=value.type)
    new.meta.update({key: item for key, item in value.meta.items() if key != "role"})
    return new
