"""Newer opsets of ONNX's own operators, for models in which each of them means the same there.

A node stays as it is where its operator has the same attributes and operands in both opsets, or more of them.
Axes of reductions became an operand, which is added. `onnx.version_converter` converts neither other domains
nor functions, and copies all constants.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from onnx import defs, helper

from o2o.errors import ModelError
from o2o.formats.tensors import is_constant_node
from o2o.model import Model, inner_graphs
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
