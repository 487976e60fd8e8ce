"""Newer opsets for ONNX models.

`raise_opset` changes a model in place. A node stays where its operator has the same attributes and operands
in both opsets, or more of them. Axes of reductions became an operand, which is added.
`raise_opsets` gives several models one opset. Where the first way fails, ONNX's version converter rewrites
the model. That takes neither other domains nor functions, nor operators of one runtime in ONNX's own domain.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
import onnx.version_converter
import onnx_ir as ir
from onnx import defs, helper

from o2o.errors import ModelError
from o2o.formats.onnx_writer import decoded_header
from o2o.formats.tensors import is_constant_node
from o2o.model import Model, inner_graphs, keep_description, nested_graphs
from o2o.rewriting.builder import add_constant

OLDEST = 13
"""The first opset from which the rules of this module are known to hold."""
_CHANGED = ("GroupNormalization", "Resize", "Upsample", "Scan", "Cast", "CastLike", "DFT", "GridSample")
"""Operators that may compute something else in a newer opset under the same attributes."""
_SAME_FOR_COMMON_TYPES = ("Cast", "CastLike")
"""Of these, only conversions to 8 bits changed."""
_DOMAINS = ("", "ai.onnx")


def opset_of(model: Model) -> int:
    """Return the version of ONNX's own operators in a model.

    Args:
        model: An ONNX model.

    Returns:
        The version.
    """
    imports = model.graphs[0].opset_imports
    return next((imports[domain] for domain in _DOMAINS if domain in imports), 1)


def raise_opset(model: Model, version: int) -> None:
    """Import newer operators, also in functions.

    Args:
        model: An ONNX model, changed in place.
        version: The version of ONNX's own operators.

    Raises:
        ModelError: An operator means something else in the newer version. The model is as it was.
    """
    old = opset_of(model)
    if old >= version:
        return
    if old < OLDEST:
        raise ModelError(f"opset {old} is older than {OLDEST}")
    imports = [graph.opset_imports for graph in model.graphs]
    for function in model.functions.values():
        own = next((function.opset_imports[d] for d in _DOMAINS if d in function.opset_imports), None)
        if own is not None and own != old:
            raise ModelError(f"the function {function.name} imports opset {own}, not {old}")
        imports.append(function.opset_imports)
    nodes = list(_nodes(model))
    for _, node in nodes:
        if (reason := _obstacle(node, old, version)) is not None:
            raise ModelError(f"{node.op_type} of opset {old} {reason}")
    for graph, node in nodes:
        _convert(graph, node, old, version)
    for each in imports:
        for domain in _DOMAINS:
            if domain in each:
                each[domain] = version
    needed = helper.OP_SET_ID_VERSION_MAP.get(("ai.onnx", version), 0)
    model.fields["ir_version"] = max(model.fields.get("ir_version", 0), needed)


def _nodes(model: Model) -> Iterator[tuple[ir.Graph, ir.Node]]:
    """ONNX's own nodes, with the graph that holds each."""
    for graph in model.all_graphs():
        for node in graph:
            if node.domain in _DOMAINS:
                yield graph, node


def _obstacle(node: ir.Node, old: int, new: int) -> str | None:
    """Why a node cannot stay as it is, with the changes that `_convert` makes."""
    if is_constant_node(node) or any(True for _ in inner_graphs(node)):
        return None
    try:
        before, after = defs.get_schema(node.op_type, old), defs.get_schema(node.op_type, new)
    except defs.SchemaError:
        return None  # an operator of the runtime in ONNX's domain, such as SimplifiedLayerNormalization
    if before.since_version == after.since_version:
        return None
    if after.deprecated:
        return f"is not in opset {new}"
    if node.op_type in _CHANGED and not (node.op_type in _SAME_FOR_COMMON_TYPES and not _is_to_8_bits(node)):
        return f"computes something else in opset {new}"
    lost = [name for name in node.attributes if name not in after.attributes]
    if lost and not _is_reduction(node, lost):
        return f"has the attribute {lost[0]}, which opset {new} has not"
    for name, attribute in after.attributes.items():
        if name in node.attributes:
            continue
        default = before.attributes[name].default_value if name in before.attributes else None
        if attribute.required or (default is not None and default != attribute.default_value):
            return f"has no attribute {name}, whose default changed"
    if len(node.inputs) > len(after.inputs) and not _is_variadic(after):
        return f"takes other operands in opset {new}"
    return None


def _is_to_8_bits(node: ir.Node) -> bool:
    to = node.attributes.get("to")
    dtype = ir.DataType(to.as_int()) if to is not None else node.outputs[0].dtype
    return dtype is None or (dtype.is_floating_point() and dtype.bitwidth <= 8)


def _is_reduction(node: ir.Node, lost: list[str]) -> bool:
    return node.op_type.startswith("Reduce") and lost == ["axes"]


def _is_variadic(schema: defs.OpSchema) -> bool:
    variadic = defs.OpSchema.FormalParameterOption.Variadic
    return bool(schema.inputs) and schema.inputs[-1].option == variadic


def _convert(graph: ir.Graph, node: ir.Node, old: int, new: int) -> None:
    if node.op_type.startswith("Reduce") and "axes" in node.attributes and old < 18 <= new:
        axes = np.asarray(node.attributes.pop("axes").as_ints(), np.int64)
        constant = add_constant(graph, axes, f"{node.outputs[0].name}/axes")
        node.resize_inputs(2)
        node.replace_input_with(1, constant)
    if node.op_type == "Split" and old < 18 <= new and len(node.inputs) < 2:
        node.attributes["num_outputs"] = ir.AttrInt64("num_outputs", len(node.outputs))


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
                _take_newer(model, domain, version, newest[domain], changed)
                label = model.label(model.graphs[0])
                lines.append(f"converted {label} from opset {version} to {newest[domain]}")
        for graph in model.graphs:
            graph.opset_imports.update(newest)
        needed = helper.OP_SET_ID_VERSION_MAP.get(("ai.onnx", newest.get("", 1)), 0)
        model.fields["ir_version"] = max(model.fields.get("ir_version", 0), needed)
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


def _take_newer(model: Model, domain: str, old: int, new: int, changed: Sequence[str]) -> None:
    """Rewrite in place where that is possible; else let ONNX's converter do it."""
    if domain == "":
        try:
            raise_opset(model, new)
        except ModelError:
            pass
        else:
            return
    _convert_by_onnx(model, domain, old, new, changed)


def _convert_by_onnx(model: Model, domain: str, old: int, new: int, changed: Sequence[str]) -> None:
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
