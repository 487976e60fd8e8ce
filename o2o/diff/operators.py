"""The differences of the operators and computed tensors of two graphs, as data for JSON."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection
from typing import Any

import onnx_ir as ir

from o2o.diff.correspondence import inner_graphs
from o2o.diff.matching import Matching, operator_name, options_of
from o2o.diff.tensor_fields import changed_fields, tensor_fields, value_name
from o2o.formats.tensors import is_constant
from o2o.model import Model

Json = dict[str, Any]


def graph_changes(second: Model, a: ir.Graph, b: ir.Graph, label: str, matching: Matching) -> Json | None:
    """Compare two graphs.

    Args:
        second: The model of `b`.
        a: A graph.
        b: Another.
        label: What the pair is called.
        matching: The operators and tensors that correspond.

    Returns:
        The differences; None without any.
    """
    matched = set(matching.nodes.values())
    removed = [_operator(node) for node in a if node not in matching.nodes]
    added = [_operator(node) for node in b if node not in matched]
    changed = [
        {**_operator(y), "changes": changes}
        for x, y in matching.nodes.items()
        if (changes := _operator_changes(x, y, matching))
    ]
    public = {
        id(value) for s in second.signatures_of(b) for value in (*s.inputs.values(), *s.outputs.values())
    }
    tensors, renamed = _tensor_changes(matching, public)
    moved = _moved(a, b, matching)
    if not (removed or added or changed or tensors or renamed or moved or a.name != b.name):
        return None
    return {
        "name": label,
        "renamed": [[a.name, b.name]] if a.name != b.name else [],
        "operators": {
            "count": {"before": len(a), "after": len(b), "matched": len(matching.nodes)},
            "removed": removed,
            "added": added,
            "changed": changed,
            "moved": moved,
        },
        "tensors": {"changed": tensors, "renamed": renamed},
    }


def _operator(node: ir.Node) -> Json:
    return {
        "operator": operator_name(node),
        "name": next((value.name for value in node.outputs if value.name), None),
        "inputs": [None if value is None else value.name for value in node.inputs],
        "outputs": [value.name for value in node.outputs],
    }


def _operator_changes(a: ir.Node, b: ir.Node, matching: Matching) -> list[str]:
    """What differs between two operators that match, a sentence each."""
    before, after = (options_of(node, with_graphs=False) for node in (a, b))
    if [name for name, _ in inner_graphs(a)] != [name for name, _ in inner_graphs(b)]:
        before["graphs"], after["graphs"] = ([name for name, _ in inner_graphs(node)] for node in (a, b))
    changes = [
        f"option {name}: {before.get(name)} -> {after.get(name)}"
        for name in dict.fromkeys((*before, *after))
        if before.get(name) != after.get(name)
    ]
    if (a.version or 1) != (b.version or 1):
        changes.append(f"version: {a.version or 1} -> {b.version or 1}")
    operands = [[*node.inputs] for node in (a, b)]
    for values in operands:
        while values and values[-1] is None:
            values.pop()
    if len(operands[0]) != len(operands[1]):
        changes.append(f"operands: {len(operands[0])} -> {len(operands[1])}")
    for k, (x, y) in enumerate(zip(*operands, strict=False)):
        if (x is None) != (y is None) or (
            x is not None and matching.values.get(x) is not y and not _same_constants(x, y)
        ):
            changes.append(f"operand {k}: {value_name(x)} -> {value_name(y)}")
    if len(a.outputs) != len(b.outputs):
        changes.append(f"results: {len(a.outputs)} -> {len(b.outputs)}")
    return changes


def _same_constants(x: ir.Value, y: ir.Value | None) -> bool:
    """Whether both are constants. How they differ is said with the constants."""
    return y is not None and is_constant(x) and is_constant(y)


def _tensor_changes(matching: Matching, public: Collection[int]) -> tuple[list[Json], list[list[str | None]]]:
    """The computed tensors that differ, except those of signatures, and those with other names."""
    changed: list[Json] = []
    renamed: list[list[str | None]] = []
    for a, b in matching.values.items():
        if is_constant(a) or is_constant(b) or a in matching.outer:
            continue
        if (fields := changed_fields(tensor_fields(a), tensor_fields(b))) and id(b) not in public:
            changed.append({"name": b.name, "changed": fields})
        if a.name != b.name:
            renamed.append([a.name, b.name])
    return changed, renamed


def _moved(a: ir.Graph, b: ir.Graph, matching: Matching) -> list[str | None]:
    """Operators that match and run in another order: all but the longest part in the same order."""
    places = {node: index for index, node in enumerate(b)}
    order = [(places[matching.nodes[node]], node) for node in a if node in matching.nodes]
    tails: list[int] = []
    at: list[int] = []
    previous: list[int] = []
    for index, (place, _) in enumerate(order):
        length = bisect_left(tails, place)
        previous.append(at[length - 1] if length else -1)
        tails[length:] = [place, *tails[length + 1 :]]
        at[length:] = [index, *at[length + 1 :]]
    stays: set[int] = set()
    last = at[-1] if at else -1
    while last >= 0:
        stays.add(last)
        last = previous[last]
    return [
        next((value.name for value in node.outputs if value.name), None)
        for index, (_, node) in enumerate(order)
        if index not in stays
    ]
