"""Clearing what nothing needs."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

# Operators that do something besides computing their outputs.
SIDE_EFFECTS = {"ASSIGN_VARIABLE", "CALL_ONCE", "HASHTABLE_IMPORT"}


def inner_graphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs that `node` runs: branches, loop bodies, decompositions."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def has_side_effects(node: ir.Node) -> bool:
    """Whether `node` does anything besides computing its outputs. One without outputs must."""
    return _has_side_effects(node, set())


def _has_side_effects(node: ir.Node, seen: set[int]) -> bool:
    if node.op_type in SIDE_EFFECTS or not any(value.name != "" for value in node.outputs):
        return True
    if (told := node.attributes.get("hasSideEffect")) is not None and told.value:
        return True
    for graph in inner_graphs(node):
        if id(graph) not in seen:
            seen.add(id(graph))
            if any(_has_side_effects(inner, seen) for inner in graph):
                return True
    return False


def remove_dead_nodes(graph: ir.Graph) -> int:
    """Remove the nodes whose results nobody uses; how many. Constants stay until `remove_dead_constants`."""
    removed = 0
    waiting = list(graph)  # the last first, so that most need no second look
    while waiting:
        node = waiting.pop()
        if node.graph is not graph or has_side_effects(node):
            continue
        if any(value.uses() or value.is_graph_output() for value in node.outputs):
            continue
        producers = {value.producer() for value in node.inputs if value is not None}
        graph.remove(node, safe=True)
        waiting.extend(producer for producer in producers if producer is not None)
        removed += 1
    return removed


def remove_dead_constants(graph: ir.Graph) -> list[ir.Value]:
    """Remove and return the constants that no node, no output and no other constant of `graph` uses."""
    values = [*graph.inputs, *graph.initializers.values()]
    values += [value for node in graph for value in node.outputs]
    named = {id(other) for value in values for other in value.meta.get("references", {}).values()}
    dead = [
        value
        for value in graph.initializers.values()
        if not (value.uses() or value.is_graph_output() or value.is_graph_input() or id(value) in named)
    ]
    for value in dead:
        assert value.name is not None
        del graph.initializers[value.name]
    return dead
