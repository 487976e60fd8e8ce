"""Builtin operators of TFLite that LiteRT registers, and the version that a node needs.

TFLite's schema lists more operators, which only LiteRT's compiler uses. The tests compare with LiteRT itself.
Versions follow LiteRT's own converter (`op_version.cc`): the first one that computes with such operands.
"""

from __future__ import annotations

import onnx_ir as ir

from o2o.formats.schema import TFLITE
from o2o.formats.tensors import is_quantized

MINIMUM_VERSIONS = {"BROADCAST_TO": 2}
"""The lowest version that LiteRT registers, where that is not 1."""

_REGISTERED_STABLEHLO = {
    *("STABLEHLO_ADD", "STABLEHLO_AND", "STABLEHLO_CASE", "STABLEHLO_COMPOSITE", "STABLEHLO_GATHER"),
    *("STABLEHLO_MAXIMUM", "STABLEHLO_MINIMUM", "STABLEHLO_MULTIPLY", "STABLEHLO_PAD", "STABLEHLO_SCATTER"),
    *("STABLEHLO_REDUCE_WINDOW", "STABLEHLO_RNG_BIT_GENERATOR", "STABLEHLO_SHIFT_LEFT"),
}
_UNREGISTERED = {"CALL", "CONCAT_EMBEDDINGS", "CUSTOM", "DELEGATE", "PLACEHOLDER_FOR_GREATER_OP_CODES"}
_WEIGHT_OPERANDS = {"FULLY_CONNECTED": 1, "EMBEDDING_LOOKUP": 1, "DEQUANTIZE": 0}


def is_registered(op_type: str) -> bool:
    """Return whether LiteRT has a kernel for a builtin operator.

    Args:
        op_type: The operator's name in the schema, such as `FULLY_CONNECTED`.

    Returns:
        Whether LiteRT's builtin resolver registers it, in any version.
    """
    if op_type not in TFLITE.operator_codes or op_type in _UNREGISTERED:
        return False
    return op_type in _REGISTERED_STABLEHLO or not op_type.startswith("STABLEHLO_")


def minimum_version(node: ir.Node) -> int:
    """Return the lowest operator version with which LiteRT computes a node.

    Args:
        node: A builtin operator with its operands.

    Returns:
        The version to write into the operator code.
    """
    return max(MINIMUM_VERSIONS.get(node.op_type, 1), _version_for_weights(node))


def _version_for_weights(node: ir.Node) -> int:
    """The version that quantized or float16 weights need; 1 for float32."""
    operand = _WEIGHT_OPERANDS.get(node.op_type)
    weights = node.inputs[operand] if operand is not None and operand < len(node.inputs) else None
    if weights is None or not (is_quantized(weights) or weights.dtype == ir.DataType.FLOAT16):
        return 1
    per_row = _num_scales(weights) > 1
    match node.op_type, weights.dtype:
        case "FULLY_CONNECTED", ir.DataType.INT8:
            hybrid = node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.FLOAT
            return 12 if hybrid and per_row else 3 if hybrid else 4
        case "EMBEDDING_LOOKUP", _:
            return 4 if weights.dtype == ir.DataType.INT4 or per_row else 1
        case "DEQUANTIZE", ir.DataType.INT4:
            return 6
        case "DEQUANTIZE", ir.DataType.FLOAT16:
            return 3
        case "DEQUANTIZE", ir.DataType.INT8:
            return 5 if per_row else 2
    return 1


def _num_scales(value: ir.Value) -> int:
    scale = getattr(value.meta.get("fields", {}).get("quantization"), "scale", None)
    return 0 if scale is None else len(scale)
