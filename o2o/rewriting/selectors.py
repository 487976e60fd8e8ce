"""Selection of graphs, inputs and outputs by signature, position or name.

A selector that matches nothing raises `UsageError`, whose message lists the available names.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from o2o.cli.text import listed
from o2o.errors import ModelError, UsageError
from o2o.model import Model, inner_graphs
from o2o.rewriting.rewire import IoKind, io_values


def entry_graphs(model: Model, signature: str | None) -> list[ir.Graph]:
    """Return the graphs that a caller of `model` can run.

    Graphs that operators run (branches, loop bodies) are excluded: their inputs and outputs cannot change.

    Args:
        model: Any model.
        signature: Return only the graph of this signature. None: the first graph, and all with a signature.

    Returns:
        The graphs, in the order of the model.

    Raises:
        UsageError: There is no such signature.
        ModelError: An operator runs its graph too.
    """
    inner = {id(graph) for outer in model.graphs for node in outer for graph in inner_graphs(node)}
    if signature is None:
        with_signature = {id(entry.graph) for entry in model.signatures}
        return [
            graph
            for index, graph in enumerate(model.graphs)
            if (index == 0 or id(graph) in with_signature) and id(graph) not in inner
        ]
    for entry in model.signatures:
        if entry.name == signature:
            if id(entry.graph) in inner:
                raise ModelError(f"an operator of another graph runs the graph of {signature} too")
            return [entry.graph]
    available = listed([entry.name for entry in model.signatures]) if model.signatures else "none"
    raise UsageError(f"there is no signature {signature!r}; there are: {available}")


def io_names(model: Model, graph: ir.Graph, value: ir.Value, io: IoKind) -> list[str]:
    """Return the names of an input or output: its own, then those in signatures of `graph`.

    Args:
        model: The model of `graph`.
        graph: The graph of `value`.
        value: An input or output.
        io: `input` or `output`.

    Returns:
        The names, each once.
    """
    names = [value.name or ""]
    for signature in model.signatures_of(graph):
        public = signature.inputs if io == "input" else signature.outputs
        names += [name for name, other in public.items() if other is value and name not in names]
    return names


def io_positions(
    model: Model,
    graphs: Sequence[ir.Graph],
    io: IoKind,
    by_id: Sequence[int] | None,
    by_name: Sequence[str] | None,
) -> dict[ir.Graph, list[int]]:
    """Return the positions of the selected inputs or outputs in each graph that has them.

    Args:
        model: The model of `graphs`.
        graphs: The graphs to search. A graph with none of the selected values is skipped.
        io: Inputs or outputs.
        by_id: Positions from 0, or None to select by name.
        by_name: Names of tensors, or in signatures.

    Returns:
        For each graph its positions, in the order of the selection.

    Raises:
        UsageError: A graph has only some of the values, or no graph has any.
    """
    positions: dict[ir.Graph, list[int]] = {}
    errors: list[str] = []
    ambiguous = len(graphs) == 1
    selected: Sequence[int] | Sequence[str] = by_id if by_id is not None else by_name or ()
    for graph in graphs:
        available = _positions(model, graph, io)
        missing = [key for key in selected if key not in available]
        if missing:
            errors.append(_missing(model, graph, io, missing[0]))
            ambiguous |= len(missing) < len(selected)
        else:
            positions[graph] = [available[key] for key in selected]
    if errors and (ambiguous or not positions):
        raise UsageError(errors[0] + ("" if len(graphs) == 1 else " (--signature selects one graph)"))
    return positions


def _positions(model: Model, graph: ir.Graph, io: IoKind) -> dict[int | str, int]:
    """Positions by number and by name; a tensor's own name precedes names in signatures."""
    values = io_values(graph, io)
    positions: dict[int | str, int] = {index: index for index in range(len(values))}
    names = [io_names(model, graph, value, io) for value in values]
    for index, (own, *_) in enumerate(names):
        positions.setdefault(own, index)
    for index, (_, *public) in enumerate(names):
        for name in public:
            positions.setdefault(name, index)
    return positions


def _missing(model: Model, graph: ir.Graph, io: IoKind, key: int | str) -> str:
    values = io_values(graph, io)
    label = model.label(graph)
    if isinstance(key, int):
        last = f"the last one is {len(values) - 1} ({values[-1].name})" if values else "there are none"
        return f"{label} has no {io} {key}; {last}"
    return f"{label} has no {io} {key!r}; there are: {listed([value.name or '' for value in values])}"
