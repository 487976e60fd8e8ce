"""Topological sort of a graph's nodes.

Counterparts: `onnx_ir.Graph.sort` and `onnx_ir.passes.common.TopologicalSortPass`. This one is stable (a
node moves only if it must, so that files change little) and names the nodes of a cycle.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from o2o.errors import ModelError
from o2o.model import operands


def topological_sort(graph: ir.Graph) -> int:
    """Sort the nodes of `graph` in place, so that each comes after the producers of its operands.

    A producer that comes too late moves to just before its first user. Inner graphs are not sorted.

    Args:
        graph: Changed in place.

    Returns:
        The number of nodes whose place changed: 0 if the graph was sorted.

    Raises:
        ModelError: The graph has a cycle.
    """
    before = list(graph)
    own = set(before)
    done: set[ir.Node] = set()
    after: list[ir.Node] = []
    for first in before:
        if first in done:
            continue
        stack = [(first, _producers(first, own))]
        on_stack = {first}
        while stack:
            node, producers = stack[-1]
            producer = next((p for p in producers if p not in done), None)
            if producer is None:
                stack.pop()
                done.add(node)
                after.append(node)
            elif producer in on_stack:
                raise ModelError(
                    f"{node.op_type} {_name(node)} depends on its own result, through {_name(producer)}"
                )
            else:
                on_stack.add(producer)
                stack.append((producer, _producers(producer, own)))
    moved = sum(old is not new for old, new in zip(before, after, strict=True))
    if moved:
        graph.extend(after)  # a graph holds each node once: this moves them
    return moved


def _producers(node: ir.Node, own: set[ir.Node]) -> Iterator[ir.Node]:
    for value in operands(node):
        if (producer := value.producer()) is not None and producer in own:
            yield producer


def _name(node: ir.Node) -> str:
    return next((value.name for value in node.outputs if value.name), "") or node.op_type
