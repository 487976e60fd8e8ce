"""Clearing what nothing needs."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from o2o.operators.attention import writes_cache
from o2o.operators.facts import facts_of


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
    if (
        facts_of(node).side_effects
        or writes_cache(node)
        or not any(value.name != "" for value in node.outputs)
    ):
        return True
    if (told := node.attributes.get("hasSideEffect")) is not None and told.value:
        return True
    for graph in inner_graphs(node):
        if id(graph) not in seen:
            seen.add(id(graph))
            if any(_has_side_effects(inner, seen) for inner in graph):
                return True
    return False


def live_nodes(graph: ir.Graph) -> set[ir.Node]:
    """The nodes that an output of `graph` needs, or that have side effects, or that these need."""
    waiting = [node for node in graph if has_side_effects(node)]
    waiting += [node for value in graph.outputs if (node := value.producer()) is not None]
    live: set[ir.Node] = set()
    while waiting:
        node = waiting.pop()
        if node not in live:
            live.add(node)
            waiting += [p for v in node.inputs if v is not None and (p := v.producer()) is not None]
    return live


def remove_dead_nodes(graph: ir.Graph) -> int:
    """Remove the nodes whose results nobody needs; how many. Constants stay until `remove_dead_constants`."""
    live = live_nodes(graph)
    dead = [node for node in graph if node not in live]
    graph.remove(dead, safe=True)
    if (names := graph.meta.get("names")) is not None:  # see `build.fresh_name`
        names -= {value.name for node in dead for value in node.outputs}
    return len(dead)


def remove_dead_constants(graph: ir.Graph) -> list[ir.Value]:
    """Remove and return the constants that no node, no output and no needed constant of `graph` uses."""
    waiting = [*graph.inputs, *graph.outputs]
    for node in graph:
        waiting += [value for value in (*node.inputs, *node.outputs) if value is not None]
    needed: set[int] = set()
    while waiting:
        value = waiting.pop()
        if id(value) not in needed:
            needed.add(id(value))
            waiting += value.meta.get("references", {}).values()
    dead = [value for value in graph.initializers.values() if id(value) not in needed]
    for value in dead:
        assert value.name is not None
        del graph.initializers[value.name]
    return dead
