"""Rewiring: operators at graph inputs and outputs, replacement of values, and updates of signatures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import onnx_ir as ir

from o2o.model import Model, keep_description, operands, unique_name
from o2o.rewriting.builder import Builder, fresh_name
from o2o.rewriting.onnx_builder import builder_for

IoKind = Literal["input", "output"]


def io_values(graph: ir.Graph, io: IoKind) -> list[ir.Value]:
    """Return the inputs or the outputs of `graph`, in order.

    Args:
        graph: The graph.
        io: `input` or `output`.

    Returns:
        The values.
    """
    return list(graph.inputs if io == "input" else graph.outputs)


def set_io_values(graph: ir.Graph, io: IoKind, values: Sequence[ir.Value]) -> None:
    """Replace the inputs or the outputs of `graph`. Call `sync_signatures` afterwards.

    Args:
        graph: Changed in place.
        io: `input` or `output`.
        values: The new inputs or outputs.
    """
    current = graph.inputs if io == "input" else graph.outputs
    current.clear()
    current.extend(values)


def insert_after_input(graph: ir.Graph, value: ir.Value) -> tuple[Builder, ir.Value]:
    """Detach an input from the operators that use it, so that others can be inserted between.

    Args:
        graph: The graph of `value`.
        value: An input of `graph`. It may also be an output, which it stays.

    Returns:
        A builder in front of the users, and the placeholder that they use now. The caller builds a value from
        `value` and replaces all uses of the placeholder by it.
    """
    first = next((node for node in graph if value in operands(node)), None)
    inner = ir.Value(name=f"{value.name}/inner", shape=value.shape, type=value.type)
    for use in value.uses():
        use.node.replace_input_with(use.idx, inner)
    return builder_for(graph, before=first), inner


def replace_graph_output(model: Model, graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Replace a value among the outputs of a graph and of its signatures, not elsewhere.

    Args:
        model: The model of `graph`.
        graph: Changed in place.
        old: An output, such as an input that is also an output. It keeps its name.
        new: The output in its place.
    """
    for index, value in enumerate(graph.outputs):
        if value is old:
            graph.outputs[index] = new
            keep_description(old, new)
    for signature in model.signatures_of(graph):
        signature.outputs = {
            name: new if value is old else value for name, value in signature.outputs.items()
        }


def insert_before_output(
    model: Model, graph: ir.Graph, value: ir.Value, build: Callable[[Builder, ir.Value], ir.Value]
) -> ir.Value:
    """Insert operators behind an output.

    Args:
        model: The model of `graph`; its signatures stay in step.
        graph: The graph of `value`.
        value: An output of `graph`.
        build: Builds the new output from `value`, at the end of the graph.

    Returns:
        The new output, under the name and role of `value`.
    """
    new = build(builder_for(graph), value)
    name, role = value.name, value.meta.get("role")
    replace_graph_output(model, graph, value, new)
    if value.is_graph_input():  # an input that is also an output keeps its name as an input
        new.name = fresh_name(graph, f"{name}_out")
    else:
        value.name = fresh_name(graph, f"{name}_inner")
        new.name = name
        value.meta.pop("role", None)
    if role is not None:
        new.meta["role"] = role
    return new


def replace_output(model: Model, old: ir.Value, new: ir.Value) -> None:
    """Replace the result of a node everywhere: among its users, graph outputs and signatures.

    Args:
        model: The model of both values.
        old: A result whose node will be removed.
        new: Its replacement, which gets the name and role of `old`.
    """
    name, role = old.name, old.meta.get("role")
    model.replace(old, new)  # first, as uses of a graph output cannot be replaced
    old.replace_all_uses_with(new)
    old.name, new.name = f"{name}/replaced", name
    if role is not None:
        new.meta["role"] = role


def sync_signatures(model: Model, graph: ir.Graph, name_all: bool = False) -> None:
    """Update the signatures of `graph` to its present inputs and outputs, in their order.

    Args:
        model: The model of `graph`. Values keep their public names.
        graph: The graph whose inputs or outputs changed.
        name_all: Give each value without a public name its own name, made unique.
    """
    for signature in model.signatures_of(graph):
        signature.inputs = _synced(signature.inputs, graph.inputs, name_all)
        signature.outputs = _synced(signature.outputs, graph.outputs, name_all)


def _synced(public: dict[str, ir.Value], values: Sequence[ir.Value], name_all: bool) -> dict[str, ir.Value]:
    result: dict[str, ir.Value] = {}
    names_by_id: dict[int, list[str]] = {}
    for name, value in public.items():
        names_by_id.setdefault(id(value), []).append(name)
    taken = {name for value in values for name in names_by_id.get(id(value), ())}
    for value in values:
        for name in names_by_id.get(id(value)) or [unique_name(value.name or "", taken)] * name_all:
            result[name] = value
            taken.add(name)
    return result
