"""Operators: the number of their operands, shapes, dtypes, versions, and quantization parameters."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from o2o.formats.litert_ops import minimum_version
from o2o.formats.schema import DIALECTS
from o2o.formats.tensors import is_quantized
from o2o.model import DOMAIN, Model, dtype_name, is_dynamic, quantization_constants, shape_of
from o2o.operators.shape_inference import Mismatch, infer_shapes
from o2o.operators.traits import BUILTIN, has_side_effects
from o2o.verifier.issue import Issue, Places

BOOL = ir.DataType.BOOL
_INTEGERS = frozenset({ir.DataType.INT32, ir.DataType.INT64})
_COMPARISONS = {"LESS", "LESS_EQUAL", "GREATER", "GREATER_EQUAL", "EQUAL", "NOT_EQUAL"}
_LOGIC = {"LOGICAL_AND", "LOGICAL_OR", "LOGICAL_NOT"}
_SELECT = {"SELECT", "SELECT_V2"}
_SAME = {
    *("RESHAPE", "EXPAND_DIMS", "SQUEEZE", "TRANSPOSE", "BROADCAST_TO", "SLICE", "STRIDED_SLICE", "TILE"),
    *("SOFTMAX", "LOG_SOFTMAX", "GELU", "RELU6", "MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "PAD", "CUMSUM"),
    *("RMS_NORM", "ROPE", "UNPACK", "SPLIT_V"),
} | {n for n, t in BUILTIN.items() if t.elementwise} - _COMPARISONS - _LOGIC - _SELECT - {"CAST"}
"""The result has the dtype of operand 0."""
_EQUAL = {
    *(
        "ADD",
        "SUB",
        "MUL",
        "DIV",
        "FLOOR_DIV",
        "FLOOR_MOD",
        "MAXIMUM",
        "MINIMUM",
        "POW",
        "SQUARED_DIFFERENCE",
    ),
    *_COMPARISONS,
}
"""Operands 0 and 1 have the same dtype."""
_INDICES: dict[str, tuple[int, ...]] = {
    "RESHAPE": (1,),
    "EXPAND_DIMS": (1,),
    "TRANSPOSE": (1,),
    "BROADCAST_TO": (1,),
    "SLICE": (1, 2),
    "STRIDED_SLICE": (1, 2, 3),
    "TILE": (1,),
    "PAD": (1,),
    "GATHER": (1,),
    "EMBEDDING_LOOKUP": (0,),
    "DYNAMIC_UPDATE_SLICE": (2,),
    "SPLIT": (0,),
    "SPLIT_V": (1, 2),
    "MEAN": (1,),
    "SUM": (1,),
    "REDUCE_MAX": (1,),
    "REDUCE_MIN": (1,),
    "CUMSUM": (1,),
}
"""Operands that are integers: axes, sizes, indices."""
_COUNTS: dict[str, tuple[int, int]] = {
    **dict.fromkeys(
        _EQUAL | {"LOGICAL_AND", "LOGICAL_OR", "BATCH_MATMUL", "GATHER", "EMBEDDING_LOOKUP"}, (2, 2)
    ),
    **dict.fromkeys(("EXPAND_DIMS", "TRANSPOSE", "BROADCAST_TO", "TILE", "SPLIT", "FILL", "CUMSUM"), (2, 2)),
    **dict.fromkeys(("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "RMS_NORM", "PAD"), (2, 2)),
    **dict.fromkeys(("SELECT", "SELECT_V2", "SLICE", "DYNAMIC_UPDATE_SLICE", "ROPE", "SPLIT_V"), (3, 3)),
    **dict.fromkeys(("RANGE",), (3, 3)),
    **dict.fromkeys(("NEG", "ABS", "SQRT", "RSQRT", "SQUARE", "EXP", "LOG", "SIN", "COS", "TANH"), (1, 1)),
    **dict.fromkeys(("LOGISTIC", "RELU", "RELU6", "GELU", "FLOOR", "CEIL", "CAST", "LOGICAL_NOT"), (1, 1)),
    **dict.fromkeys(("SOFTMAX", "SQUEEZE", "SHAPE", "QUANTIZE", "DEQUANTIZE", "UNPACK"), (1, 1)),
    "RESHAPE": (1, 2),
    "FULLY_CONNECTED": (2, 3),
    "STRIDED_SLICE": (4, 4),
    "ATTENTION": (5, 11),
}
"""The smallest and the largest number of operands."""
_SEVERAL_RESULTS = {"SPLIT", "SPLIT_V", "UNPACK"}


def verify_operators(model: Model, graph: ir.Graph) -> Iterator[Issue]:
    """Check each operator of a graph on its own.

    Args:
        model: The model of `graph`.
        graph: The graph.

    Yields:
        Issues V101 to V107.
    """
    places = Places(model, graph)
    builtins = DIALECTS[model.format].operator_codes
    for node in graph:
        if node.domain == DOMAIN and node.op_type not in builtins:
            yield places.at("V107", node, f"{model.format} has no such operator")
            continue
        if (message := _wrong_count(node)) is not None:
            yield places.at("V101", node, message)
            continue
        yield from _shapes(node, places)
        if node.domain == DOMAIN and (message := _wrong_dtype(node)) is not None:
            yield places.at("V104", node, message)
        if model.format == "tflite" and node.domain == DOMAIN:
            needed = minimum_version(node)
            if (node.version or 1) < needed:
                yield places.at("V105", node, f"version {node.version or 1}, and its operands need {needed}")
    values = [*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs)]
    for value in dict.fromkeys(values):
        if (message := _wrong_quantization(value)) is not None:
            yield places.of("V106", value, message)


def _wrong_count(node: ir.Node) -> str | None:
    if node.domain != DOMAIN or node.op_type not in _COUNTS:
        return None
    least, most = _COUNTS[node.op_type]
    given = len(node.inputs)
    while given and node.inputs[given - 1] is None:
        given -= 1
    if not least <= given <= most:
        needed = str(least) if least == most else f"{least} to {most}"
        return f"{given} operands, and it takes {needed}"
    if any(value is None for value in node.inputs[:least]):
        return f"operand {list(node.inputs).index(None)} is missing"
    if node.op_type not in _SEVERAL_RESULTS and len(node.outputs) != 1 and not has_side_effects(node):
        return f"{len(node.outputs)} results, and it has one"
    return None


def _shapes(node: ir.Node, places: Places) -> Iterator[Issue]:
    try:
        inferred = infer_shapes(node)
    except Mismatch as error:
        yield places.at("V103", node, str(error))
        return
    if inferred is None:
        return
    for value, shape in zip(node.outputs, inferred, strict=False):
        if shape is None or value.shape is None or is_dynamic(value) or value.name == "":
            continue
        declared = shape_of(value)
        if declared != shape and {declared, shape} != {(), (1,)}:  # a scalar has either form in real files
            message = f"{value.name} is declared {_text(declared)}, and computed {_text(shape)}"
            yield places.at("V102", node, message)


def _text(shape: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, shape))}]"


def _wrong_dtype(node: ir.Node) -> str | None:
    """Why the dtypes of a builtin are wrong; None if they are right, or unknown."""
    name, inputs, output = node.op_type, node.inputs, node.outputs[0] if node.outputs else None
    dtypes = [None if value is None else value.dtype for value in inputs]
    for operand in _INDICES.get(name, ()):
        if operand < len(dtypes) and dtypes[operand] is not None and dtypes[operand] not in _INTEGERS:
            if name == "GATHER" and dtypes[operand] == ir.DataType.INT16:
                continue
            return f"operand {operand} is {_name(inputs[operand])}, not an integer"
    if name in _EQUAL and None not in dtypes and dtypes[0] != dtypes[1]:
        return f"operands of {_name(inputs[0])} and {_name(inputs[1])}"
    if output is None or output.dtype is None:
        return None
    expected: ir.DataType | None = None
    if name in _COMPARISONS or name in _LOGIC:
        expected = BOOL
    elif name in _SAME and dtypes:
        expected = dtypes[0]
    elif name in ("SPLIT", "SELECT", "SELECT_V2") and len(dtypes) > 1:
        expected = dtypes[1]
    elif name in ("CONCATENATION", "PACK", "DYNAMIC_UPDATE_SLICE", "GATHER", "FILL") and dtypes:
        expected = dtypes[1] if name == "FILL" else dtypes[0]
    elif name in ("FULLY_CONNECTED", "BATCH_MATMUL", "ATTENTION") and dtypes[0] == ir.DataType.FLOAT:
        expected = dtypes[0]
    if name in _SELECT and dtypes[0] not in (None, BOOL):
        return f"the condition is {_name(inputs[0])}, not bool"
    if name in _LOGIC and any(dtype not in (None, BOOL) for dtype in dtypes):
        return "operands that are not bool"
    if expected is not None and output.dtype != expected:
        return f"{output.name} is {_name(output)}, and the operator computes {expected.numpy()}"
    return _wrong_matrix(node)


def _wrong_matrix(node: ir.Node) -> str | None:
    """Why the matrix of a FULLY_CONNECTED has a wrong dtype."""
    if node.op_type != "FULLY_CONNECTED":
        return None
    x, weight = node.inputs[0], node.inputs[1]
    if x is None or weight is None or x.dtype != ir.DataType.FLOAT or weight.dtype is None:
        return None
    halves = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    if weight.dtype != x.dtype and weight.dtype not in halves and not is_quantized(weight):
        return f"{weight.name} is {_name(weight)} without scales, and x is float32"
    return None


def _name(value: ir.Value | None) -> str:
    return "absent" if value is None else dtype_name(value)


def _wrong_quantization(value: ir.Value) -> str | None:
    """Why the quantization of a tensor is wrong; None if it is right, or absent."""
    quantization = value.meta.get("fields", {}).get("quantization")
    scale = getattr(quantization, "scale", None)
    if scale is None or not len(scale) or quantization_constants(value) or is_dynamic(value):
        return None
    numbers, shape = np.asarray(scale, np.float64), shape_of(value)
    if not np.isfinite(numbers).all() or (numbers < 0).any():
        return f"the scale {float(numbers[~(np.isfinite(numbers) & (numbers >= 0))][0]):g}"
    zeros = getattr(quantization, "zeroPoint", None)
    if zeros is not None and len(zeros) not in (0, 1, len(numbers)):
        return f"{len(zeros)} zero points for {len(numbers)} scales"
    if len(numbers) > 1:
        axis = quantization.quantizedDimension
        if not 0 <= axis < len(shape):
            return f"scales along axis {axis} of {_text(shape)}"
        if len(numbers) != shape[axis]:
            return f"{len(numbers)} scales for {shape[axis]} rows along axis {axis}"
    if value.dtype is not None and value.dtype.is_floating_point():
        return None if len(numbers) == 1 else f"{len(numbers)} scales on {_name(value)}"
    return None
