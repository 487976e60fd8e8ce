"""Renaming of graph inputs and outputs, in the graph and in its signatures."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx_ir as ir

from o2o.errors import ModelError
from o2o.model import Model, nested_graphs
from o2o.rewriting.rewire import IoKind, io_values
from o2o.rewriting.selectors import io_names

Rename = Callable[[str], str | None]
"""Maps a name to its new name, or to None if it stays."""


def rename_io(model: Model, graph: ir.Graph, io: IoKind, rename: Rename) -> dict[str, str]:
    """Rename inputs or outputs of `graph`.

    `rename` is called with the tensor's own name first, then with its names in signatures. The first new name
    is used for all of them.

    Args:
        model: The model of `graph`.
        graph: Changed in place.
        io: Inputs or outputs.
        rename: The new names.

    Returns:
        {old name: new name}, in graph order.

    Raises:
        ModelError: Two values would have one name. Nothing was changed.
    """
    new: dict[ir.Value, str] = {}
    renamed: dict[str, str] = {}
    for value in io_values(graph, io):
        for name in io_names(model, graph, value, io):
            new_name = rename(name)
            if new_name is not None:
                new[value], renamed[name] = new_name, new_name
                break
    _check_unique(graph, new)
    public = [s.inputs if io == "input" else s.outputs for s in model.signatures_of(graph)]
    for names in public:
        if len({new.get(value, name) for name, value in names.items()}) < len(names):
            raise ModelError(f"two names in the signature of {model.label(graph)} would become equal")
    for names in public:
        items = {new.get(value, name): value for name, value in names.items()}
        names.clear()
        names.update(items)
    for index, value in enumerate(new):  # through unused names, since a and b may swap
        value.name = f"\0{index}"
    for value, name in new.items():
        value.name = name
    graph.meta.pop("names", None)  # the names in use, cached by o2o.rewriting.builder.fresh_name
    return renamed


def _check_unique(graph: ir.Graph, new: dict[ir.Value, str]) -> None:
    """Raises ModelError unless each new name belongs to one value."""
    owner: dict[str, ir.Value] = {}
    for value, name in new.items():
        if not name or name in owner:
            old = " and ".join(repr(other.name) for other in (owner.get(name), value) if other is not None)
            raise ModelError(f"{old} would both become {name!r}" if name else f"{old} would have no name")
        owner[name] = value
    for value in _values(graph):
        if value not in new and value.name in owner:
            raise ModelError(
                f"{owner[value.name].name!r} cannot become {value.name!r}: this is the name of {_kind(value)}"
            )


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs
        for inner in nested_graphs(node):  # names of ONNX are unique across a graph and the graphs in it
            yield from inner.inputs
            yield from inner.initializers.values()
            yield from (value for other in inner for value in other.outputs)
    yield from graph.meta.get("loose", ())


def _kind(value: ir.Value) -> str:
    if value.is_graph_input():
        return "another input"
    if value.is_graph_output():
        return "another output"
    producer = value.producer()
    return f"the result of {producer.op_type}" if producer is not None else "a constant"
