"""Putting operators between a graph and its ends, and new values in the place of old ones."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from o2o.model import Model
from o2o.rewriting.builder import Builder, fresh_name


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
