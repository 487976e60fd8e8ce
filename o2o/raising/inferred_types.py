"""Types and shapes of the results of one ONNX node, as ONNX infers them from those of its operands."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx_ir as ir
from onnx import defs, shape_inference

from o2o.formats.tensors import constant_array

_SMALL = 64
"""The most numbers of a constant operand that a shape may depend on."""


def inferred_types(
    node: ir.Node, values: Sequence[ir.Value | None], opset: int
) -> list[tuple[ir.DataType, tuple[int, ...] | None]] | None:
    """Infer the results of a node.

    Args:
        node: A node of ONNX's own domain.
        values: Its operands, with their shapes.
        opset: The version of its domain.

    Returns:
        The dtype and the shape of each result; None for an unknown shape. None if nothing is inferred.
    """
    if any(value is not None and (value.dtype is None or value.shape is None) for value in values):
        return None
    proto = ir.serde.serialize_node(node)
    proto.input[:] = ["" if value is None else f"x{index}" for index, value in enumerate(values)]
    proto.output[:] = [f"y{index}" for index in range(len(node.outputs))]
    types, data = {}, {}
    for index, value in enumerate(values):
        if value is None or value.dtype is None or value.shape is None:
            continue
        types[f"x{index}"] = onnx.helper.make_tensor_type_proto(value.dtype.value, value.shape.numpy())
        is_small = value.const_value is not None and value.const_value.size <= _SMALL
        if is_small and (array := constant_array(value)) is not None:
            data[f"x{index}"] = onnx.numpy_helper.from_array(array, f"x{index}")
    try:
        schema = defs.get_schema(node.op_type, opset, "" if node.domain == "ai.onnx" else node.domain)
        inferred = shape_inference.infer_node_outputs(
            schema, proto, types, data, opset_imports=[onnx.helper.make_opsetid(node.domain, opset)]
        )
    except Exception:  # the operator is not ONNX's, or the operands break its rules
        return None
    results = []
    for name in proto.output:
        tensor = inferred[name].tensor_type if name in inferred else None
        if tensor is None or not tensor.elem_type:
            return None
        dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
        is_known = tensor.HasField("shape") and None not in dims
        shape = tuple(dim for dim in dims if dim is not None) if is_known else None
        results.append((ir.DataType(tensor.elem_type), shape))
    return results
