"""Newer opsets for ONNX models.

Most operators mean the same in both: new operands and attributes are optional. A few, whose form
changed in opset 18, are rewritten here. For others, ONNX's version converter rewrites the model. It takes no
operators of runtimes in ONNX's own domain, such as SimplifiedLayerNormalization.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
import onnx.version_converter
import onnx_ir as ir

from o2o.errors import ModelError
from o2o.formats.onnx_writer import decoded_header
from o2o.model import Model, attribute, keep_description, nested_graphs
from o2o.rewriting.onnx_builder import builder_for

STABLE = 13
"""The first opset of today's Softmax: operators of older ones changed without a change of their form."""


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
        opset = onnx.helper.make_opsetid("", newest.get("", 1))
        least = onnx.helper.find_min_ir_version_for([opset], ignore_unknown=True)
        if model.fields.get("ir_version", onnx.IR_VERSION) < least:
            model.fields["ir_version"] = least
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
    if domain == "" and old >= STABLE and all(_is_adaptable(name, old, new) for name in changed):
        _adapt(model)
        return
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


def _is_adaptable(op_type: str, old: int, new: int) -> bool:
    """Whether an operator of one opset is one of another, after `_adapt`."""
    if op_type in _REWRITES:
        return True
    try:
        before, after = (onnx.defs.get_schema(op_type, version, "") for version in (old, new))
    except onnx.defs.SchemaError:
        return False
    operands = [operand.name for operand in after.inputs][: len(before.inputs)]
    results = [result.name for result in after.outputs][: len(before.outputs)]
    return (
        operands == [operand.name for operand in before.inputs]
        and results == [result.name for result in before.outputs]
        and set(before.attributes) <= set(after.attributes)
    )


def _adapt(model: Model) -> None:
    """Rewrite the operators whose form changed."""
    graphs = [*model.graphs, *(inner for graph in model.graphs for n in graph for inner in nested_graphs(n))]
    for graph in graphs:
        for node in list(graph):
            if node.domain == "" and node.op_type in _REWRITES:
                _REWRITES[node.op_type](graph, node)


def _axes_to_operand(graph: ir.Graph, node: ir.Node) -> None:
    """Reductions have had their axes as an operand since opset 18."""
    axes = attribute(node, "axes")
    if axes is None:
        return
    del node.attributes["axes"]
    op = builder_for(graph, before=node, prefix=f"{node.outputs[0].name}_")
    node.resize_inputs(2)
    node.replace_input_with(1, op.constant(np.asarray(axes, np.int64), "axes"))


def _number_of_outputs(graph: ir.Graph, node: ir.Node) -> None:
    """A Split into equal parts has had their number as an attribute since opset 18."""
    if "num_outputs" not in node.attributes and (len(node.inputs) < 2 or node.inputs[1] is None):
        node.attributes["num_outputs"] = ir.AttrInt64("num_outputs", len(node.outputs))


_REDUCTIONS = ("Max", "Mean", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")
_REWRITES: dict[str, Callable[[ir.Graph, ir.Node], None]] = {
    **dict.fromkeys((f"Reduce{name}" for name in _REDUCTIONS), _axes_to_operand),
    "Split": _number_of_outputs,
}
