"""Correspondence of two models: which graphs, signatures, inputs and outputs are compared with each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import onnx_ir as ir

from o2o.contract import role_of
from o2o.diff.matching import Matching, match_graphs
from o2o.diff.tensor_fields import value_name
from o2o.model import CUSTOM_DOMAIN, DOMAIN, Model, Signature, captured_values

Pair = tuple[ir.Graph, ir.Graph]


def graph_pairs(first: Model, second: Model) -> tuple[list[Pair], list[ir.Graph], list[ir.Graph]]:
    """Pair the graphs of two models: by signature, by name, by order. Functions of ONNX by their identifiers.

    Args:
        first: A model.
        second: Another.

    Returns:
        The pairs, and the other graphs of the first and of the second model.
    """
    pairs: dict[ir.Graph, ir.Graph] = {}

    def pair(a: ir.Graph, b: ir.Graph) -> None:
        if a not in pairs and b not in pairs.values():
            pairs[a] = b

    for one, other in signature_pairs(first, second):
        pair(one.graph, other.graph)
    by_name = {graph.name: graph for graph in second.graphs if graph.name}
    for graph in first.graphs:
        if graph.name in by_name:
            pair(graph, by_name[graph.name])
    left = [graph for graph in first.graphs if graph not in pairs]
    right = [graph for graph in second.graphs if graph not in pairs.values()]
    if len(left) == len(right):
        for a, b in zip(left, right, strict=True):
            pair(a, b)
    some, others = ({key: of.graph for key, of in model.functions.items()} for model in (first, second))
    functions = [(graph, others[key]) for key, graph in some.items() if key in others]
    removed = [
        *(graph for graph in first.graphs if graph not in pairs),
        *(graph for key, graph in some.items() if key not in others),
    ]
    added = [
        *(graph for graph in second.graphs if graph not in pairs.values()),
        *(graph for key, graph in others.items() if key not in some),
    ]
    return [*pairs.items(), *functions], removed, added


def matched_graphs(
    first: Model, second: Model, a: ir.Graph, b: ir.Graph
) -> Iterator[tuple[ir.Graph, ir.Graph, str, Matching]]:
    """Match two graphs, and the graphs in attributes of nodes that match (ONNX).

    Args:
        first: The model of `a`.
        second: The model of `b`.
        a: A graph.
        b: Another.

    Yields:
        Two graphs, a label of them, and their matching.
    """
    pending = [(a, b, second.label(b), match_graphs(a, b, _known_values(first, second, a, b)))]
    while pending:
        a, b, label, matching = pending.pop(0)
        yield a, b, label, matching
        for x, y in matching.nodes.items():
            if x.domain in (DOMAIN, CUSTOM_DOMAIN):
                continue
            outer = [(v, matching.values[v]) for v in captured_values(x) if v in matching.values]
            for (name, one), (_, other) in zip(inner_graphs(x), inner_graphs(y), strict=False):
                known = [
                    *value_pairs(_by_name(one.inputs), _by_name(other.inputs)),
                    *value_pairs(_by_name(one.outputs), _by_name(other.outputs)),
                ]
                inner_label = f"{label}, {name} of {y.op_type} {value_name(next(iter(y.outputs), None))}"
                pending.append(
                    (one, other, inner_label, match_graphs(one, other, known, dict(outer).items()))
                )


def inner_graphs(node: ir.Node) -> list[tuple[str, ir.Graph]]:
    """Return the graphs in the attributes of a node, in the order of their names.

    Args:
        node: A node.

    Returns:
        The names of the attributes, and the graphs.
    """
    graphs = []
    for name in sorted(node.attributes):
        item = node.attributes[name]
        if item.type == ir.AttributeType.GRAPH:
            graphs.append((name, item.as_graph()))
        elif item.type == ir.AttributeType.GRAPHS:
            graphs += [(f"{name} {number}", inner) for number, inner in enumerate(item.as_graphs())]
    return graphs


def _by_name(values: Iterable[ir.Value]) -> dict[str, ir.Value]:
    return {value.name or "": value for value in values}


def signature_pairs(first: Model, second: Model) -> list[tuple[Signature, Signature]]:
    """Pair the signatures of the same name; and the last one on each side, if only one is left.

    Args:
        first: A model.
        second: Another.

    Returns:
        The pairs.
    """
    by_name = {signature.name: signature for signature in second.signatures}
    pairs = [(s, by_name[s.name]) for s in first.signatures if s.name in by_name]
    left = [s for s in first.signatures if s.name not in by_name]
    right = [s for s in second.signatures if all(s is not b for _, b in pairs)]
    return [*pairs, (left[0], right[0])] if len(left) == len(right) == 1 else pairs


def _known_values(
    first: Model, second: Model, a: ir.Graph, b: ir.Graph
) -> Iterator[tuple[ir.Value, ir.Value]]:
    """The inputs and outputs of two graphs that correspond: by names in signatures, roles, names, order."""
    pairs = signature_pairs(first, second)
    for one, other in pairs:
        if one.graph is a and other.graph is b:
            yield from value_pairs(one.inputs, other.inputs)
            yield from value_pairs(one.outputs, other.outputs)
    for values, others in ((a.inputs, b.inputs), (a.outputs, b.outputs)):
        yield from value_pairs(_by_name(values), _by_name(others))


def value_pairs(
    some: Mapping[str, ir.Value], others: Mapping[str, ir.Value]
) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Pair inputs or outputs: by their names, by their roles, and by their order if as many are left.

    Args:
        some: Values of one side, by name.
        others: Those of the other side.

    Yields:
        The pairs.
    """
    left, right = dict(some), dict(others)
    for name in list(left):
        if name in right:
            yield left.pop(name), right.pop(name)
    by_role = {role: name for name, value in right.items() if (role := _identity(value)) is not None}
    for name, value in list(left.items()):
        if (role := _identity(value)) is not None and role in by_role:
            yield left.pop(name), right.pop(by_role.pop(role))
    if len(left) == len(right):
        yield from zip(left.values(), right.values(), strict=True)


def _identity(value: ir.Value) -> tuple[str, int | None] | None:
    role = role_of(value)
    return None if role is None else (role.kind, role.layer)
