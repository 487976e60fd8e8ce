"""Part of a graph between boundaries: the operators that compute some tensors from others."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

import onnx_ir as ir

from o2o.cli.arguments import suggestion
from o2o.errors import UsageError
from o2o.formats.tensors import is_constant
from o2o.model import Model, operands, users
from o2o.rewriting.selectors import io_names


def find_tensors(model: Model, graph: ir.Graph, patterns: Sequence[str]) -> list[ir.Value]:
    """Find inputs and computed tensors of a graph by their names, or names in signatures.

    Args:
        model: The model of `graph`.
        graph: The graph to search.
        patterns: Names, or patterns with `*`, `?` and `[...]`. A name that exists is no pattern. Of several
            tensors with one name in the file, it is that of the first one that is used.

    Returns:
        The tensors in the order of the patterns, and of the graph for each pattern.

    Raises:
        UsageError: A pattern matches no tensor.
    """
    names: dict[str, list[ir.Value]] = {}
    for value in (*graph.inputs, *(value for node in graph for value in node.outputs)):
        for name in (value.name or "", *_public_names(model, graph, value)):
            names.setdefault(name, []).append(value)
    for value in [value for values in names.values() for value in values]:
        own, in_file = value.meta.get("name", (None, None))
        if own == value.name and in_file in names:  # an operator writes an input, or names are not unique
            is_unused = not names[in_file][0].uses() and not names[in_file][0].is_graph_output()
            names[in_file].insert(0 if is_unused else len(names[in_file]), value)
    tensors: dict[ir.Value, None] = {}
    for pattern in patterns:
        if pattern in names:
            matching = names[pattern][:1]  # a tensor's own name precedes names in signatures
        else:
            matching = [v for name, values in names.items() if fnmatchcase(name, pattern) for v in values]
        if not matching:
            raise UsageError(_missing(model, graph, pattern, names))
        tensors |= dict.fromkeys(matching)
    return list(tensors)


def _public_names(model: Model, graph: ir.Graph, value: ir.Value) -> list[str]:
    names: list[str] = []
    if value.is_graph_input():
        names += io_names(model, graph, value, "input")[1:]
    if value.is_graph_output():
        names += io_names(model, graph, value, "output")[1:]
    return names


def _missing(model: Model, graph: ir.Graph, pattern: str, names: Collection[str]) -> str:
    constants = [name for name in graph.initializers if fnmatchcase(name, pattern)]
    if constants:
        return (
            f"{constants[0]} of {model.label(graph)} is a constant: name a tensor that an operator computes"
        )
    near = suggestion(pattern, names) or "; inspect.model.py --html shows all tensors"
    return f"{model.label(graph)} has no tensor {pattern!r}{near}"


def nodes_on_paths(
    graph: ir.Graph, sources: Collection[ir.Value] | None, targets: Collection[ir.Value] | None
) -> set[ir.Node]:
    """Find the operators on the paths from some tensors to others.

    Operators that depend on constants alone belong to the part that uses them.

    Args:
        graph: The graph.
        sources: Tensors where the part begins. None: it begins at the inputs.
        targets: Tensors where the part stops. None: at all outputs that depend on `sources`.

    Returns:
        The operators.

    Raises:
        UsageError: No path leads to one of `targets`, or from one of `sources`.
    """
    after, constant = _dependents(graph, sources), _constant_nodes(graph)
    if targets is None:
        targets = [value for value in graph.outputs if value.producer() in after]
    part: set[ir.Node] = set()
    used: set[ir.Value] = set()
    stops = set(sources or ())
    for target in targets:
        producer = target.producer()
        if target in stops or producer is None or (sources is not None and producer not in after):
            start = "an input" if sources is None else "a tensor of --from"
            raise UsageError(f"no operator leads from {start} to {target.name}")
    pending = [target.producer() for target in targets]
    while pending:
        node = pending.pop()
        if node is None or node in part:
            continue
        part.add(node)
        for value in operands(node):
            used.add(value)
            producer = value.producer()
            if value not in stops and (producer in after or producer in constant):
                pending.append(producer)
    for source in sources or ():
        if source not in used:
            goal = "an output" if not targets else "a tensor of --to"
            raise UsageError(
                f"no operator leads from {source.name} to {goal}, or all paths cross another --from"
            )
    return part


def _dependents(graph: ir.Graph, sources: Collection[ir.Value] | None) -> set[ir.Node]:
    """The operators that depend on `sources`; all without."""
    if sources is None:
        return set(graph)
    dependents: set[ir.Node] = set()
    pending = list(sources)
    while pending:
        for node in users(pending.pop(), graph):
            if node not in dependents:
                dependents.add(node)
                pending += node.outputs
    return dependents


def _constant_nodes(graph: ir.Graph) -> set[ir.Node]:
    """The operators that depend on constants alone. Operators are in the order of their dependencies."""
    nodes: set[ir.Node] = set()
    for node in graph:
        values = list(operands(node))
        if values and all(is_constant(value) or value.producer() in nodes for value in values):
            nodes.add(node)
    return nodes
