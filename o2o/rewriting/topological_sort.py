"""The order in which nodes can run."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from o2o.errors import ModelError


def topological_sort(graph: ir.Graph) -> bool:
    """Move nodes of `graph` behind those that make their operands; whether any had to move.

    Nodes that can stay, stay: a producer moves to just before its first user. Graphs inside nodes are not
    entered. Raises ModelError for a cycle.
    """
    before = list(graph)
    own = set(before)
    done: set[ir.Node] = set()
    after: list[ir.Node] = []
    for first in before:
        if first in done:
            continue
        waiting = [(first, _producers(first, own))]
        open_ = {first}
        while waiting:
            node, producers = waiting[-1]
            producer = next((p for p in producers if p not in done), None)
            if producer is None:
                waiting.pop()
                done.add(node)
                after.append(node)
            elif producer in open_:
                way = f"by way of {_name(producer)}"
                raise ModelError(f"{node.op_type} {_name(node)} needs its own result, {way}")
            else:
                open_.add(producer)
                waiting.append((producer, _producers(producer, own)))
    if after == before:
        return False
    graph.extend(after)  # a graph holds a node once: this moves them
    return True


def _producers(node: ir.Node, own: set[ir.Node]) -> Iterator[ir.Node]:
    for value in node.inputs:
        if value is not None and (producer := value.producer()) is not None and producer in own:
            yield producer


def _name(node: ir.Node) -> str:
    return next((value.name for value in node.outputs if value.name), "") or node.op_type
