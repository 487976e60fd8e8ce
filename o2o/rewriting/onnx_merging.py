"""What the graphs of one ONNX file have in common: opsets and functions (`o2o.formats.onnx_branches`)."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx.version_converter
import onnx_ir as ir

from o2o.errors import ModelError
from o2o.formats.onnx_writer import decoded_header, selector_of
from o2o.model import Model, keep_description, nested_graphs


def raise_opsets(models: Sequence[Model]) -> list[str]:
    """Give the graphs of models the newest opset of all. Operators that changed meanwhile are converted.

    Args:
        models: The models, changed in place.

    Returns:
        What was converted, a line for each model.

    Raises:
        ModelError: ONNX cannot convert an operator.
    """
    newest: dict[str, int] = {}
    for model in models:
        for domain, version in model.graphs[0].opset_imports.items():
            newest[domain] = max(version, newest.get(domain, 0))
    lines = []
    for model in models:
        for domain, version in dict(model.graphs[0].opset_imports).items():
            if changed := _changed_operators(model, domain, version, newest[domain]):
                _convert(model, domain, version, newest[domain], changed)
                label = model.label(model.graphs[0])
                lines.append(f"converted {label} from opset {version} to {newest[domain]}")
        for graph in model.graphs:
            graph.opset_imports.update(newest)
    return lines


def _changed_operators(model: Model, domain: str, old: int, new: int) -> list[str]:
    """The operators that two opsets define differently."""
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
    label = f"{model.label(model.graphs[0])} has opset {old}, and another graph {new}"
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


def add_functions(result: Model, model: Model) -> None:
    """Add the functions of a model to those of another. One of the same name and another body is renamed.

    Args:
        result: Gets the functions.
        model: The model, whose nodes may be renamed.
    """
    renamed: dict[ir.OperatorIdentifier, ir.OperatorIdentifier] = {}
    taken = {*result.functions, *model.functions}
    for key, function in model.functions.items():
        other = result.functions.get(key)
        if other is None or _same(function, other):
            continue
        domain, name, overload = key
        count = 1
        while (domain, f"{name}_{count}", overload) in taken:
            count += 1
        renamed[key] = domain, f"{name}_{count}", overload
        taken.add(renamed[key])
    for graph in model.all_graphs():
        for node in graph:
            if (new := renamed.get(node.op_identifier())) is not None:
                node.op_type = new[1]
    for key, function in model.functions.items():
        if key in renamed:
            function.name = renamed[key][1]
        result.functions.setdefault(renamed.get(key, key), function)


def _same(function: ir.Function, other: ir.Function) -> bool:
    one, two = (
        ir.serde.serialize_function(each).SerializeToString(deterministic=True) for each in (function, other)
    )
    return one == two


def selection(model: Model) -> str:
    """Describe what selects the graph that runs, in words.

    Args:
        model: An ONNX model of several graphs.

    Returns:
        One line.

    Raises:
        ModelError: The graphs cannot be in one file.
    """
    selector = selector_of(model)
    labels = [model.label(graph) for graph in model.graphs]
    if selector.is_flag:
        return f"the input {selector.input} selects {labels[selector.order[0]]} if it is true"
    if selector.axis is None:
        numbers = ", ".join(f"{number} {label}" for number, label in enumerate(labels))
        return f"the input {selector.input} selects the signature: {numbers}"
    sizes = ", ".join(
        f"{'else' if size is None else size} {label}"
        for size, label in zip(selector.sizes, labels, strict=True)
    )
    return f"the size of axis {selector.axis} of {selector.input} selects the signature: {sizes}"
