"""The differences of two models, as data for JSON."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from o2o.diff.constant_changes import ConstantChanges
from o2o.diff.correspondence import graph_pairs, matched_graphs
from o2o.diff.interfaces import contract_changes, signature_changes
from o2o.diff.metadata import history_changes, metadata_changes
from o2o.diff.operators import graph_changes
from o2o.model import Model

Json = dict[str, Any]


def diff(first: Model, second: Model) -> Json:
    """Compare two models.

    Args:
        first: A model.
        second: Another.

    Returns:
        Data for JSON. `same` is true if nothing differs; then all lists are empty.
    """
    pairs, removed, added = graph_pairs(first, second)
    graphs, constants = [], ConstantChanges()
    for pair in pairs:
        for a, b, label, matching in matched_graphs(first, second, *pair):
            entry = graph_changes(second, a, b, label, matching)
            if entry is not None:
                graphs.append(entry)
            constants.compare(a, b, matching)
    result: Json = {
        "format": [first.format, second.format] if first.format != second.format else None,
        "signatures": signature_changes(first, second),
        "contract": contract_changes(first, second),
        "graphs": graphs,
        "removed_graphs": [_size(first, graph) for graph in removed],
        "added_graphs": [_size(second, graph) for graph in added],
        "constants": constants.as_json(),
        "metadata": metadata_changes(first, second),
        "history": history_changes(first.history, second.history),
    }
    return {"same": not any(map(_differs, result.values())), **result}


def _differs(part: Any) -> bool:
    """Whether a part of the result holds a difference: any list that is not empty."""
    if isinstance(part, dict):
        return any(_differs(item) for item in part.values() if isinstance(item, dict | list))
    return bool(part)


def _size(model: Model, graph: ir.Graph) -> Json:
    return {"name": model.label(graph), "operators": len(graph)}
