"""Clearing what nothing needs."""

from __future__ import annotations

import onnx_ir as ir

# Operators that do something besides computing their outputs: never dead.
SIDE_EFFECTS = {"ASSIGN_VARIABLE", "CALL_ONCE", "HASHTABLE_IMPORT", "VAR_HANDLE"}


def remove_dead_nodes(graph: ir.Graph) -> int:
    """Remove the nodes whose results nobody uses; how many. Constants stay until `remove_dead_constants`."""
    removed = 0
    for node in reversed(graph):
        if node.op_type in SIDE_EFFECTS:
            continue
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
            removed += 1
    return removed


def remove_dead_constants(graph: ir.Graph) -> int:
    """Remove the constants that no node and no output of `graph` uses; how many."""
    dead = [v for v in graph.initializers.values() if not v.uses() and not v.is_graph_output()]
    for value in dead:
        assert value.name is not None
        del graph.initializers[value.name]
    return len(dead)
