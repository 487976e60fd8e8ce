"""FULLY_CONNECTED nodes that read one input, fused into one node with stacked weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from o2o.formats.tensors import is_constant, storage_key
from o2o.formats.unbound_tensor import UnboundTensor
from o2o.model import DOMAIN, Model, attribute, shape_of
from o2o.rewriting.builder import Builder
from o2o.rewriting.dead_code_elimination import remove_dead_constants, remove_dead_nodes
from o2o.rewriting.rewire import replace_output
from o2o.rewriting.stacked_weights import stack_weights

Group = tuple[Hashable, ...]
"""Matrices to stack, in order, by their storage keys."""


@dataclass
class FusedProducts:
    """The number of FULLY_CONNECTED nodes that were fused, and the number of nodes that replace them."""

    before: int = 0
    after: int = 0


def fuse_fully_connected(model: Model) -> FusedProducts:
    """Fuse the plain FULLY_CONNECTED nodes of each input, in all graphs of `model`, in place.

    Graphs that share matrices share the stacked ones. A graph that uses only some matrices of a group
    computes the others' products too.

    Args:
        model: Its weights are constants, or quantized by row or by block. Weights in a checkpoint stay.

    Returns:
        How many nodes became how many.
    """
    sibling_lists = [nodes for graph in model.graphs for nodes in _siblings(graph)]
    groups = _groups(sibling_lists)
    matrices = {key: node.inputs[1] for nodes in sibling_lists for key, node in _by_storage(nodes)}
    result = FusedProducts()
    for graph in model.graphs:
        for nodes in _siblings(graph):
            for group in groups:
                members = {key: node for key, node in _by_storage(nodes) if key in group}
                if members and _fuse(model, graph, members, group, matrices):
                    result.before += len(members)
                    result.after += 1
        remove_dead_nodes(graph)
        remove_dead_constants(graph)
    return result


def _siblings(graph: ir.Graph) -> Iterator[list[ir.Node]]:
    """The FULLY_CONNECTED nodes of each input that can be fused, in graph order."""
    by_input: dict[tuple[object, ...], list[ir.Node]] = defaultdict(list)
    for node in graph:
        if node.domain != DOMAIN or node.op_type != "FULLY_CONNECTED" or len(node.outputs) != 1:
            continue
        x, w, *bias = node.inputs
        options = tuple(sorted((key, attribute.value) for key, attribute in node.attributes.items()))
        if x is None or w is None or not is_constant(w) or isinstance(w.const_value, UnboundTensor):
            continue
        if any(bias) or attribute(node, "fusedActivationFunction", 0) or node.meta.get("fields"):
            continue
        by_input[x, options, node.version, shape_of(node.outputs[0])[:-1]].append(node)
    return iter(by_input.values())


def _by_storage(nodes: Sequence[ir.Node]) -> Iterator[tuple[Hashable, ir.Node]]:
    for node in nodes:
        matrix = node.inputs[1]
        assert matrix is not None
        assert matrix.const_value is not None
        yield storage_key(matrix.const_value), node


def _groups(sibling_lists: Sequence[Sequence[ir.Node]]) -> list[Group]:
    """Disjoint groups of matrices that read one input in some graph, the largest first."""
    candidates = {tuple(dict.fromkeys(key for key, _ in _by_storage(nodes))) for nodes in sibling_lists}
    groups: list[Group] = []
    grouped: set[Hashable] = set()
    for group in sorted(candidates, key=len, reverse=True):
        if len(group) > 1 and not grouped & set(group):
            groups.append(group)
            grouped |= set(group)
    return groups


def _fuse(
    model: Model,
    graph: ir.Graph,
    nodes: dict[Hashable, ir.Node],
    group: Group,
    matrices: dict[Hashable, ir.Value | None],
) -> bool:
    """Replace `nodes`, which read one input, by one node. False if their weights cannot be stacked."""
    values = [value for key in group if (value := matrices[key]) is not None]
    matrix = stack_weights(graph, values)
    if matrix is None:
        return False
    first = next(iter(nodes.values()))
    op = Builder(graph, before=first, prefix=f"{first.outputs[0].name}/")
    *outer, _ = shape_of(first.outputs[0])
    options = {key: attribute.value for key, attribute in first.attributes.items()}
    rows = [shape_of(value)[0] for value in values]
    product = op.node(
        "FULLY_CONNECTED", [first.inputs[0], matrix, None], [*outer, sum(rows)], name="joined", **options
    )
    producer = product.producer()
    assert producer is not None
    producer.version = first.version
    start = 0
    for key, count in zip(group, rows, strict=True):
        if key in nodes:
            begin = [0] * len(outer) + [start]
            replace_output(model, nodes[key].outputs[0], op.slice(product, begin, [*outer, count], "part"))
        start += count
    return True
