"""The definition of an ONNX operator by other ONNX operators, where ONNX has one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
import onnx.inliner
import onnx_ir as ir
from onnx import defs

from o2o.model import inner_graphs

_DOMAIN = "expansion"


def expansion_of(node: ir.Node, values: Sequence[ir.Value | None], opset: int) -> ir.Graph | None:
    """Return the nodes that define an operator.

    Args:
        node: An ONNX node.
        values: Its operands, whose types and shapes the definition may depend on.
        opset: The version of its domain.

    Returns:
        A graph whose inputs and outputs are those of the node; None if ONNX defines the operator otherwise.
    """
    if node.domain not in ("", "ai.onnx") or any(True for _ in inner_graphs(node)):
        return None
    try:
        schema: Any = defs.get_schema(node.op_type, opset, "")
    except defs.SchemaError:
        return None
    proto = ir.serde.serialize_node(node)
    given = {attribute.name for attribute in proto.attribute}
    for name, attribute in schema.attributes.items():
        if name not in given and attribute.default_value.type:
            proto.attribute.append(attribute.default_value)
    inputs = [_value_info(f"x{index}", value) for index, value in enumerate(values) if value is not None]
    proto.input[:] = ["" if value is None else f"x{index}" for index, value in enumerate(values)]
    proto.output[:] = [f"y{index}" if value.name else "" for index, value in enumerate(node.outputs)]
    if schema.has_context_dependent_function:
        types = [onnx.TypeProto() if value is None else _value_info("", value).type for value in values]
        version = _version(schema.context_dependent_function_opset_versions, opset)
        text = schema.get_context_dependent_function_with_opset_version(
            version, proto.SerializeToString(), [each.SerializeToString() for each in types]
        )
    elif schema.has_function:
        text = schema.get_function_with_opset_version(_version(schema.function_opset_versions, opset))
    else:
        return None
    function = onnx.FunctionProto.FromString(text)
    if not function.node:
        return None
    return _inlined(function, proto, inputs, opset)


def _version(versions: Sequence[int], opset: int) -> int:
    """The version of a definition: the newest that the opset has, else the first. It names its own opset."""
    return max((version for version in versions if version <= opset), default=min(versions))


def _inlined(
    function: onnx.FunctionProto, node: onnx.NodeProto, inputs: Sequence[onnx.ValueInfoProto], opset: int
) -> ir.Graph:
    function.name, function.domain = node.op_type, _DOMAIN
    if not function.opset_import:
        function.opset_import.append(onnx.helper.make_opsetid("", opset))
    node.domain, node.name = _DOMAIN, "expansion"
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    graph = onnx.helper.make_graph([node], "expansion", inputs, outputs)
    opsets = [*function.opset_import, onnx.helper.make_opsetid(_DOMAIN, 1)]
    model = onnx.helper.make_model(graph, functions=[function], opset_imports=opsets)
    body = ir.serde.deserialize_model(onnx.inliner.inline_local_functions(model)).graph
    by_name = {value.name: value for value in body.inputs}
    absent = [name or None for name in node.input]
    ordered = [by_name[name] if name else ir.Value(name=f"absent_{i}") for i, name in enumerate(absent)]
    body.inputs.clear()
    body.inputs.extend(ordered)
    return body


def _value_info(name: str, value: ir.Value) -> onnx.ValueInfoProto:
    assert value.dtype is not None
    shape = None if value.shape is None else list(value.shape.numpy())
    return onnx.helper.make_tensor_value_info(name, int(value.dtype.value), shape)
