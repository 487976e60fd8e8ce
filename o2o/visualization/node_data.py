"""Numbers of operators for Google's Model Explorer, which colors a graph by them.

A file is a JSON object with an entry for each graph: `{"name": ..., "results": {KEY: {"value": NUMBER}}}`.
KEY is the name of an operator's result. Source: `node_data_builder.py` of the package ai-edge-model-explorer.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from o2o.errors import ModelError
from o2o.formats.tensors import is_constant
from o2o.model import Model

GRADIENT = [{"stop": 0, "bgColor": "#e2f6e6"}, {"stop": 1, "bgColor": "#ff8182"}]
"""From green to red."""


def node_data(model: Model, report: Any = None) -> dict[str, Any]:
    """Return the node data of a model: errors of a quantization, or bytes of constants.

    Args:
        model: The model.
        report: The report of quantize.weights.py. None for the bytes of constants.

    Returns:
        An object for JSON, by the names of graphs. Operators without a number are left out.

    Raises:
        ModelError: The report has another form, or none of its tensors is in the model.
    """
    errors = None if report is None else _errors(report)
    graphs = {}
    for number, graph in enumerate(model.graphs):
        results = {}
        for node in graph:
            value = _bytes(node) if errors is None else _error(node, errors)
            if value is not None and (name := next((v.name for v in node.outputs if v.name), None)):
                results[name] = {"value": value}
        if results:
            title = "bytes of constants" if errors is None else "relative error (rms)"
            entry = {"name": title, "results": results, "gradient": GRADIENT}
            graphs[graph.name or f"subgraph_{number}"] = entry
    if not graphs and errors is not None:
        raise ModelError("the model has none of the quantized tensors of the report: it is of another model")
    return graphs


def _errors(report: Any) -> dict[str, float]:
    """The relative error of each tensor in a report."""
    try:
        tensors = report["tensors"]
        return {entry["name"]: float(entry["error"]["rms"]) for entry in tensors if "error" in entry}
    except (TypeError, KeyError, ValueError, AttributeError):
        raise ModelError("the report is not one of quantize.weights.py: it has no list `tensors`") from None


def _error(node: ir.Node, errors: dict[str, float]) -> float | None:
    known = [
        errors[name] for value in node.inputs if value is not None and (name := value.name or "") in errors
    ]
    return max(known, default=None)


def _bytes(node: ir.Node) -> int | None:
    constants = {v: v.const_value for v in node.inputs if v is not None and is_constant(v)}
    return sum(tensor.nbytes for tensor in constants.values() if tensor is not None) or None
