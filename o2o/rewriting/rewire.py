"""Putting operators between a graph and its ends, and new values in the place of old ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import onnx_ir as ir

from o2o.model import Model
from o2o.rewriting.builder import Builder, fresh_name

IoKind = Literal["input", "output"]


def io_values(graph: ir.Graph, io: IoKind) -> list[ir.Value]:
    return list(graph.inputs if io == "input" else graph.outputs)


def set_io_values(graph: ir.Graph, io: IoKind, values: Sequence[ir.Value]) -> None:
    side = graph.inputs if io == "input" else graph.outputs
    side.clear()
    side.extend(values)


def detach_input(graph: ir.Graph, value: ir.Value) -> tuple[Builder, ir.Value]:
    """Take the input `value` off its users: a builder that works in front of them, and what they use now.

    The caller builds something from `value` and lets it replace the second result everywhere.
    """
    first = next((node for node in graph if value in node.inputs), None)
    inner = ir.Value(name=f"{value.name}/inner", shape=value.shape, type=value.type)
    value.replace_all_uses_with(inner)
    return Builder(graph, before=first), inner


def detach_output(
    model: Model, graph: ir.Graph, value: ir.Value, build: Callable[[Builder, ir.Value], ir.Value]
) -> ir.Value:
    """Let what `build` makes of the output `value` be given out in its place, under its name and role."""
    new = build(Builder(graph), value)
    name, role = value.name, value.meta.get("role")
    model.replace(value, new)
    if value.is_graph_input():  # an input that is given out as it came keeps its name as an input
        new.name = fresh_name(graph, f"{name}_out")
    else:
        value.name = fresh_name(graph, f"{name}_inner")
        new.name = name
        value.meta.pop("role", None)
    if role is not None:
        new.meta["role"] = role
    return new


def replace_output(model: Model, old: ir.Value, new: ir.Value) -> None:
    """Let `new` take the place and the name of `old`, whose node is to die."""
    name, role = old.name, old.meta.get("role")
    model.replace(old, new)  # first: the uses of a graph's output cannot be replaced
    old.replace_all_uses_with(new)
    old.name, new.name = f"{name}/replaced", name
    if role is not None:
        new.meta["role"] = role


def sync_signatures(model: Model, graph: ir.Graph, name_all: bool = False) -> None:
    """Let the signatures of `graph` name its inputs and outputs as they are now, and in their order.

    Names stay with their values. With `name_all`, a value that has none gets its own, or one like it.
    """
    for signature in model.signatures_of(graph):
        signature.inputs = _in_step(signature.inputs, graph.inputs, name_all)
        signature.outputs = _in_step(signature.outputs, graph.outputs, name_all)


def _in_step(public: dict[str, ir.Value], values: Sequence[ir.Value], name_all: bool) -> dict[str, ir.Value]:
    result: dict[str, ir.Value] = {}
    told: dict[int, list[str]] = {}
    for name, value in public.items():
        told.setdefault(id(value), []).append(name)
    taken = {name for value in values for name in told.get(id(value), ())}
    for value in values:
        for name in told.get(id(value)) or [_unused(value.name or "", taken)] * name_all:
            result[name] = value
            taken.add(name)
    return result


def _unused(stem: str, taken: set[str]) -> str:
    name, count = stem, 0
    while name in taken:
        count += 1
        name = f"{stem}_{count}"
    return name
