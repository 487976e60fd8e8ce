"""Newer opsets for ONNX models. ONNX's version converter rewrites operators that changed meanwhile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
import onnx.version_converter
import onnx_ir as ir

from o2o.errors import ModelError
from o2o.formats.onnx_writer import decoded_header
from o2o.model import Model, keep_description, nested_graphs


def raise_opsets(models: Sequence[Model], at_least: Mapping[str, int] | None = None) -> list[str]:
    """Give the graphs of models the newest opset of all.

    Args:
        models: The models, changed in place.
        at_least: The oldest version to have, by domain.

    Returns:
        What was converted, a line for each model.

    Raises:
        ModelError: ONNX cannot convert an operator.
    """
    newest: dict[str, int] = dict(at_least or {})
    for model in models:
        for domain, version in model.graphs[0].opset_imports.items():
            newest[domain] = max(version, newest.get(domain, 0))
    lines = []
    for model in models:
        for domain, version in dict(model.graphs[0].opset_imports).items():
            if changed := changed_operators(model, domain, version, newest[domain]):
                _convert(model, domain, version, newest[domain], changed)
                label = model.label(model.graphs[0])
                lines.append(f"converted {label} from opset {version} to {newest[domain]}")
        for graph in model.graphs:
            graph.opset_imports.update(newest)
    return lines


def changed_operators(model: Model, domain: str, old: int, new: int) -> list[str]:
    """List the operators of a model that two opsets define differently.

    Args:
        model: An ONNX model.
        domain: The domain of the opset.
        old: One version.
        new: Another.

    Returns:
        The names of the operators.
    """
    if old == new:
        return []
    nodes = [node for graph in model.graphs for node in _all_nodes(graph) if node.domain == domain]
    return sorted({node.op_type for node in nodes if _since(node, old) != _since(node, new)})


def _all_nodes(graph: ir.Graph) -> list[ir.Node]:
    return [*graph, *(node for outer in graph for inner in nested_graphs(outer) for node in inner)]


def _since(node: ir.Node, version: int) -> int | None:
    """The opset that defines an operator as it is in an opset; None if that has no such operator."""
    try:
        return int(onnx.defs.get_schema(node.op_type, version, node.domain).since_version)
    except onnx.defs.SchemaError:
        return None


def _convert(model: Model, domain: str, old: int, new: int, changed: Sequence[str]) -> None:
    """Let ONNX's converter raise the opset. Raises ModelError where it cannot."""
    label = f"{model.label(model.graphs[0])} has opset {old}, and {new} is needed"
    if domain != "" or model.functions:
        where = "functions cannot be converted" if model.functions else f"{domain} has no converter"
        differ = f"{label}, in which {', '.join(changed[:3])} differ"
        raise ModelError(f"{differ}: {where}, export both with one opset")
    try:
        converted = decoded_header(model, lambda proto: onnx.version_converter.convert_version(proto, new))
    except (RuntimeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = " ".join(str(error).split())[:200]
        failure = f"{label}: ONNX's version converter fails, export both with one opset: {reason}"
        raise ModelError(failure) from error
    for graph, changed_graph in zip(list(model.graphs), converted.graphs, strict=True):
        changed_graph.name = graph.name
        pairs = [*zip(graph.inputs, changed_graph.inputs, strict=True)]
        pairs += zip(graph.outputs, changed_graph.outputs, strict=True)
        for a, b in pairs:
            keep_description(a, b)
            if (role := a.meta.get("role")) is not None:
                b.meta["role"] = role
        for signature in model.signatures_of(graph):
            for a, b in pairs:
                signature.replace(a, b)
            signature.graph = changed_graph
    model.graphs = converted.graphs
