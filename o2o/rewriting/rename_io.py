"""Renaming the ends of a graph, together with what signatures call them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx_ir as ir

from o2o.errors import ModelError
from o2o.model import Model
from o2o.rewriting.rewire import IoKind, io_values
from o2o.rewriting.selectors import io_names

Rename = Callable[[str], str | None]  # the new name, or None for a name that is not meant


def rename_io(model: Model, graph: ir.Graph, io: IoKind, rename: Rename) -> dict[str, str]:
    """Rename the inputs or outputs of `graph` that `rename` means: {old: new}.

    An end is meant by its tensor's name or else by the one it has in a signature; it then has the new name
    in both. Raises ModelError, before anything changed, when two things would have the same name.
    """
    new: dict[ir.Value, str] = {}
    told: dict[str, str] = {}
    for value in io_values(graph, io):
        for name in io_names(model, graph, value, io):
            found = rename(name)
            if found is not None:
                new[value], told[name] = found, found
                break
    _check_apart(graph, new)
    public = [s.inputs if io == "input" else s.outputs for s in model.signatures_of(graph)]
    for names in public:
        _check_public(
            model.label(graph), {new.get(value, name): name for name, value in names.items()}, names
        )
    for names in public:
        renamed = {new.get(value, name): value for name, value in names.items()}
        names.clear()
        names.update(renamed)
    for index, value in enumerate(new):  # by way of names that nothing has: a and b may change places
        value.name = f"\0{index}"
    for value, name in new.items():
        value.name = name
    graph.meta.pop("names", None)  # the names in use, kept by o2o.rewriting.builder.fresh_name
    return told


def _check_apart(graph: ir.Graph, new: dict[ir.Value, str]) -> None:
    """Raises ModelError unless every value that is renamed has its new name for itself."""
    holder: dict[str, ir.Value] = {}
    for value, name in new.items():
        if not name or name in holder:
            old = " and ".join(repr(other.name) for other in (holder.get(name), value) if other is not None)
            raise ModelError(f"{old} would both be called {name!r}" if name else f"{old} would have no name")
        holder[name] = value
    for value in _values(graph):
        if value not in new and value.name in holder:
            raise ModelError(
                f"{holder[value.name].name!r} cannot be called {value.name!r}: {_what(value)} is"
            )


def _check_public(label: str, renamed: dict[str, str], names: dict[str, ir.Value]) -> None:
    if len(renamed) < len(names):
        raise ModelError(f"two names in the signature of {label} would become the same")


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs
    yield from graph.meta.get("loose", ())


def _what(value: ir.Value) -> str:
    if value.is_graph_input():
        return "another input"
    if value.is_graph_output():
        return "another output"
    producer = value.producer()
    return f"the result of {producer.op_type}" if producer is not None else "a constant"
