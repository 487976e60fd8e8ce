"""Operators, dtypes and ranks that onert 0.1.0 computes correctly on its `cpu` backend.

onert has more. Listed are the operators of decoders, in the dtypes and ranks that decoders use.
`tests/o2o/lower/onert` checks them against onert itself.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from o2o.errors import ModelError
from o2o.formats.tensors import is_constant, is_quantized
from o2o.model import CUSTOM_DOMAIN, Model, attribute, is_dynamic, shape_of

_FLOAT, _BOOL = ir.DataType.FLOAT, ir.DataType.BOOL
_INTEGERS = frozenset({ir.DataType.INT32, ir.DataType.INT64})
_FLOATS = frozenset({_FLOAT})
_NUMBERS = _FLOATS | _INTEGERS

_UNARY = (
    *("ABS", "SQRT", "RSQRT", "SQUARE", "EXP", "LOG", "SIN", "COS", "TANH", "LOGISTIC", "RELU", "RELU6"),
    *("FLOOR", "GELU"),
)
DTYPES: dict[str, frozenset[ir.DataType]] = {
    **dict.fromkeys(_UNARY, _FLOATS),
    **dict.fromkeys(("ADD", "SUB", "MUL", "NEG"), _NUMBERS),
    **dict.fromkeys(("DIV", "POW", "SQUARED_DIFFERENCE", "MAXIMUM", "MINIMUM"), _FLOATS),
    **dict.fromkeys(("LESS", "LESS_EQUAL", "GREATER", "GREATER_EQUAL", "EQUAL", "NOT_EQUAL"), _NUMBERS),
    **dict.fromkeys(("LOGICAL_AND", "LOGICAL_OR", "LOGICAL_NOT"), frozenset({_BOOL})),
    **dict.fromkeys(("RESHAPE", "EXPAND_DIMS", "SQUEEZE", "CAST"), _NUMBERS | {_BOOL}),
    **dict.fromkeys(("CONCATENATION", "STRIDED_SLICE", "SPLIT"), _NUMBERS),
    **dict.fromkeys(("GATHER", "BROADCAST_TO", "PACK"), _FLOATS | {ir.DataType.INT32}),
    **dict.fromkeys(("SELECT", "SELECT_V2", "TILE", "SLICE"), _FLOATS),
    **dict.fromkeys(("TRANSPOSE", "MEAN", "SUM", "REDUCE_MAX", "SOFTMAX", "BATCH_MATMUL"), _FLOATS),
    **dict.fromkeys(("RMS_NORM", "ROPE", "FULLY_CONNECTED"), _FLOATS),
}
"""Dtypes of the data operand: the first operand that is not ids, a condition or an axis."""
_DATA_OPERANDS = {"SELECT": 1, "SELECT_V2": 1, "SPLIT": 1}  # numbers of data operands, where not 0
RANKS = {"SLICE": 4, "STRIDED_SLICE": 5, "BATCH_MATMUL": 4, "MEAN": 4, "SUM": 4, "REDUCE_MAX": 4}
"""The highest supported rank, where it is below 6. SLICE of rank 5, for example, returns wrong numbers."""
_ALTERNATIVES = {
    "BATCH_MATMUL": "fuse.bmm_lhs_const.py turns it into FULLY_CONNECTED",
}


def check_supported(model: Model, graph: ir.Graph, node: ir.Node) -> None:
    """Check that onert computes a node correctly.

    Args:
        model: The model of `graph`, for messages.
        graph: The graph of `node`, for messages.
        node: Any node.

    Raises:
        ModelError: It does not; the message names the node, its place and the reason.
    """
    name = node.op_type
    if node.domain == CUSTOM_DOMAIN or name not in DTYPES:
        hint = f": {_ALTERNATIVES[name]}" if name in _ALTERNATIVES else ""
        raise ModelError(f"onert has no operator {model.locate(graph, node)}{hint}")
    data = node.inputs[_DATA_OPERANDS.get(name, 0)]
    assert data is not None
    if reason := _unsupported(node, data):
        raise ModelError(f"onert does not compute {model.locate(graph, node)}: {reason}")


def _unsupported(node: ir.Node, data: ir.Value) -> str:
    """The reason why onert cannot compute `node` correctly; "" if it can."""
    name = node.op_type
    for operand, value in enumerate((*node.inputs, *node.outputs)):
        if value is None:
            continue
        if is_quantized(value) and (name, operand) != ("FULLY_CONNECTED", 1):
            return f"{value.name} is quantized"
        if is_dynamic(value):
            return f"{value.name} has no fixed shape"
    if data.dtype not in DTYPES[name]:
        return f"{data.name} is {data.dtype}"
    if len(shape_of(data)) > RANKS.get(name, 6):
        return f"{data.name} has more than {RANKS.get(name, 6)} axes"
    if attribute(node, "fusedActivationFunction", 0) not in (0, 1, 3):
        return "its fused activation is neither RELU nor RELU6"
    weights = node.inputs[1] if name == "FULLY_CONNECTED" else None
    if weights is not None and not is_quantized(weights) and weights.dtype != _FLOAT:
        return f"{weights.name} is {weights.dtype}"
    if name == "BATCH_MATMUL" and is_constant(data):
        return f"{data.name}, its left operand, is constant: {_ALTERNATIVES[name]}"
    if name == "ROPE" and math.prod(shape_of(data)[:1] + shape_of(data)[2:3]) != 1:
        return "it rotates several positions"
    if name == "GATHER" and attribute(node, "batchDims", 0):
        return "it gathers by batch"
    return ""
