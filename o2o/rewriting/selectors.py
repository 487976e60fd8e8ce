"""Choosing parts of a model from the command line: by position, by name, by signature.

A selector that matches nothing is a `UsageError` that says what there is.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from o2o.cli.text import listed
from o2o.errors import ModelError, UsageError
from o2o.model import Model
from o2o.rewriting.dead_code_elimination import inner_graphs
from o2o.rewriting.rewire import IoKind, io_values


def entry_graphs(model: Model, signature: str | None) -> list[ir.Graph]:
    """The graphs that a user of `model` runs: the one of `signature`, else the first and all with one.

    A graph that another one runs (a branch, a loop's body) is not among them: its ends are not free.
    """
    inner = {id(graph) for outer in model.graphs for node in outer for graph in inner_graphs(node)}
    if signature is None:
        signed = {id(told.graph) for told in model.signatures}
        return [
            graph
            for index, graph in enumerate(model.graphs)
            if (index == 0 or id(graph) in signed) and id(graph) not in inner
        ]
    for told in model.signatures:
        if told.name == signature:
            if id(told.graph) in inner:
                raise ModelError(f"the graph of {signature} is also run by an operator of another graph")
            return [told.graph]
    there = listed([told.name for told in model.signatures]) if model.signatures else "none at all"
    raise UsageError(f"there is no signature {signature!r}; there are: {there}")


def io_names(model: Model, graph: ir.Graph, value: ir.Value, io: IoKind) -> list[str]:
    """What `value` may be called: its own name, then those that signatures give it."""
    found = [value.name or ""]
    for signature in model.signatures_of(graph):
        public = signature.inputs if io == "input" else signature.outputs
        found += [name for name, other in public.items() if other is value and name not in found]
    return found


def io_positions(
    model: Model,
    graphs: Sequence[ir.Graph],
    io: IoKind,
    by_id: Sequence[int] | None,
    by_name: Sequence[str] | None,
) -> dict[ir.Graph, list[int]]:
    """Where the chosen ends (by number, or else by name) are, in the order given, in each graph with them.

    A graph that has none of them is not meant. One that has some of them is in doubt, and a UsageError.
    """
    found: dict[ir.Graph, list[int]] = {}
    complaints: list[str] = []
    doubt = len(graphs) == 1
    wanted: Sequence[int] | Sequence[str] = by_id if by_id is not None else by_name or ()
    for graph in graphs:
        places = _places(model, graph, io)
        lacking = [key for key in wanted if key not in places]
        if lacking:
            complaints.append(_lack(model, graph, io, lacking[0]))
            doubt |= len(lacking) < len(wanted)
        else:
            found[graph] = [places[key] for key in wanted]
    if complaints and (doubt or not found):
        raise UsageError(complaints[0] + ("" if len(graphs) == 1 else " (--signature chooses one graph)"))
    return found


def _places(model: Model, graph: ir.Graph, io: IoKind) -> dict[int | str, int]:
    """Positions by number and by name; a tensor's own name goes before those in signatures."""
    values = io_values(graph, io)
    found: dict[int | str, int] = {index: index for index in range(len(values))}
    public = [io_names(model, graph, value, io) for value in values]
    for index, names_ in enumerate(public):
        found.setdefault(names_[0], index)
    for index, names_ in enumerate(public):
        for name in names_[1:]:
            found.setdefault(name, index)
    return found


def _lack(model: Model, graph: ir.Graph, io: IoKind, wanted: int | str) -> str:
    values = io_values(graph, io)
    where = model.label(graph)
    if isinstance(wanted, int):
        last = f"the last one is {len(values) - 1} ({values[-1].name})" if values else "there are none"
        return f"{where} has no {io} {wanted}; {last}"
    return f"{where} has no {io} {wanted!r}; there are: {listed([value.name or '' for value in values])}"
