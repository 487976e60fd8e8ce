"""`fuse.fc.py`."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence

import onnx_ir as ir

from o2o.filters.base import Filter
from o2o.formats.external_tensor import ExternalTensor
from o2o.formats.tensors import is_constant, storage_key
from o2o.model import DOMAIN, Model, attribute, shape_of
from o2o.rewriting.builder import Builder
from o2o.rewriting.dead_code_elimination import remove_dead_constants, remove_dead_nodes
from o2o.rewriting.rewire import replace_output
from o2o.rewriting.stacked_weights import join

Group = tuple[Hashable, ...]
"""Matrices that stand one below the other in a new one, by where their bytes are."""


class FuseFc(Filter):
    """Let FULLY_CONNECTED that read the same input be one, with all their rows.

        x -- FULLY_CONNECTED (q [N*H,D]) -- q       x -- FULLY_CONNECTED ([(N+2K)*H,D]) -- SLICE -- q
        x -- FULLY_CONNECTED (k [K*H,D]) -- k   =>                                      \\- SLICE -- k
        x -- FULLY_CONNECTED (v [K*H,D]) -- v                                            \\- SLICE -- v

    Queries, keys and values are one matrix then, and so are an MLP's gate and up: a step has fewer operators
    for its threads to meet at. Every result is the same, bit by bit. Graphs that share matrices share the new
    ones; where one of them has less of a group, it computes the rest for nothing. Matrices may be quantised,
    by row or by block.
    Left alone: what has a bias, an activation, or another kind of weights than its neighbours; weights that
    are still in a checkpoint (bind.weights.py puts them in).
    """

    name = "fuse.fc.py"
    usage_example = "fuse.fc.py < model.circle > joined.circle"

    def apply(self, model: Model, args: argparse.Namespace) -> None:
        neighbours = [nodes for graph in model.graphs for nodes in _neighbours(graph)]
        groups = _groups(neighbours)
        matrices = {key: node.inputs[1] for nodes in neighbours for key, node in _keyed(nodes)}
        joined = before = 0
        for graph in model.graphs:
            for nodes in _neighbours(graph):
                for group in groups:
                    mine = {key: node for key, node in _keyed(nodes) if key in group}
                    if mine and _fuse(model, graph, mine, group, matrices):
                        joined, before = joined + 1, before + len(mine)
            remove_dead_nodes(graph)
            remove_dead_constants(graph)
        self.say(f"{before} FULLY_CONNECTED are {joined} now" if joined else "nothing to join")


def _neighbours(graph: ir.Graph) -> Iterator[list[ir.Node]]:
    """The plain FULLY_CONNECTED of each input, in order."""
    found: dict[tuple[object, ...], list[ir.Node]] = defaultdict(list)
    for node in graph:
        if node.domain != DOMAIN or node.op_type != "FULLY_CONNECTED" or len(node.outputs) != 1:
            continue
        x, w, *bias = node.inputs
        options = tuple(sorted((key, attribute.value) for key, attribute in node.attributes.items()))
        if x is None or w is None or not is_constant(w) or isinstance(w.const_value, ExternalTensor):
            continue
        if any(bias) or attribute(node, "fusedActivationFunction", 0) or node.meta.get("fields"):
            continue
        found[x, options, node.version, shape_of(node.outputs[0])[:-1]].append(node)
    return iter(found.values())


def _keyed(nodes: Sequence[ir.Node]) -> Iterator[tuple[Hashable, ir.Node]]:
    for node in nodes:
        matrix = node.inputs[1]
        assert matrix is not None
        assert matrix.const_value is not None
        yield storage_key(matrix.const_value), node


def _groups(neighbours: Sequence[Sequence[ir.Node]]) -> list[Group]:
    """What belongs together anywhere; no matrix is in two of these."""
    candidates = {tuple(dict.fromkeys(key for key, _ in _keyed(nodes))) for nodes in neighbours}
    found: list[Group] = []
    taken: set[Hashable] = set()
    for group in sorted(candidates, key=len, reverse=True):
        if len(group) > 1 and not taken & set(group):
            found.append(group)
            taken |= set(group)
    return found


def _fuse(
    model: Model,
    graph: ir.Graph,
    nodes: dict[Hashable, ir.Node],
    group: Group,
    matrices: dict[Hashable, ir.Value | None],
) -> bool:
    """Put one node in the place of `nodes`, which read the same input; whether their weights allow it."""
    values = [value for key in group if (value := matrices[key]) is not None]
    matrix = join(graph, values)
    if matrix is None:
        return False
    first = next(iter(nodes.values()))
    op = Builder(graph, before=first, prefix=f"{first.outputs[0].name}/")
    *outer, _ = shape_of(first.outputs[0])
    options = {key: attribute.value for key, attribute in first.attributes.items()}
    rows = [shape_of(value)[0] for value in values]
    whole = op.node(
        "FULLY_CONNECTED", [first.inputs[0], matrix, None], [*outer, sum(rows)], name="joined", **options
    )
    producer = whole.producer()
    assert producer is not None
    producer.version = first.version
    start = 0
    for key, count in zip(group, rows, strict=True):
        if key in nodes:
            begin = [0] * len(outer) + [start]
            replace_output(model, nodes[key].outputs[0], op.slice(whole, begin, [*outer, count], "part"))
        start += count
    return True


main = FuseFc.main
