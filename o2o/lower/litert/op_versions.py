"""Operator versions by what operators are given: that of the first LiteRT which computes such a thing.

As its own converter sets them (`op_version.cc`). Of operators on plain floats it is what
`o2o.lower.litert.registered_ops` says, else 1.
"""

from __future__ import annotations

import onnx_ir as ir

from o2o.formats.tensors import is_quantized
from o2o.lower.litert.registered_ops import MINIMUM_VERSIONS

INT4, INT8, FLOAT16 = ir.DataType.INT4, ir.DataType.INT8, ir.DataType.FLOAT16


def minimum_version(node: ir.Node) -> int:
    """The least version of `node` that LiteRT runs, and that does what it is given."""
    return max(MINIMUM_VERSIONS.get(node.op_type, 1), _for_weights(node))


def _for_weights(node: ir.Node) -> int:
    """The version that it needs on account of weights that are quantised or stored by half; else 1."""
    operand = {"FULLY_CONNECTED": 1, "EMBEDDING_LOOKUP": 1, "DEQUANTIZE": 0}.get(node.op_type)
    weights = node.inputs[operand] if operand is not None and operand < len(node.inputs) else None
    if weights is None or not (is_quantized(weights) or weights.dtype == FLOAT16):
        return 1
    by_row = _scales(weights) > 1
    match node.op_type, weights.dtype:
        case "FULLY_CONNECTED", ir.DataType.INT8:
            hybrid = node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.FLOAT
            return 12 if hybrid and by_row else 3 if hybrid else 4
        case "EMBEDDING_LOOKUP", _:
            return 4 if weights.dtype == INT4 or by_row else 1
        case "DEQUANTIZE", ir.DataType.INT4:
            return 6
        case "DEQUANTIZE", ir.DataType.FLOAT16:
            return 3
        case "DEQUANTIZE", ir.DataType.INT8:
            return 5 if by_row else 2
    return 1


def _scales(value: ir.Value) -> int:
    scale = getattr(value.meta.get("fields", {}).get("quantization"), "scale", None)
    return 0 if scale is None else len(scale)
