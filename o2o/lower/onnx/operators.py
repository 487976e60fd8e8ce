"""Circle's other operators in ONNX, for T tokens at a time (`o2o.lower.onnx.per_token`).

A new operator needs one entry in `RULES`. Axes are counted from the end, because leading axes are added.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import is_quantized
from o2o.lower.onnx.builder import dims
from o2o.lower.onnx.per_token import TokenValues, token_shape
from o2o.model import attribute, shape_of
from o2o.operators.reference import NotEvaluable, slice_bounds
from o2o.rewriting.matchers import constant_ints

Rule = Callable[[TokenValues, ir.Node], None]
"""Builds the ONNX operators of a node and assigns its results."""


def lower_operator(tokens: TokenValues, node: ir.Node) -> None:
    """Lower an operator by its rule.

    Args:
        tokens: The values of the graph.
        node: A builtin operator.

    Raises:
        ModelError: It has no rule, or its rule does not support its operands or attributes.
    """
    rule = RULES.get(node.op_type)
    if rule is None:
        raise tokens.error(node, f"no ONNX lowering for {node.op_type} (see o2o/lower/onnx/operators.py)")
    rule(tokens, node)


def _elementwise(op_type: str) -> Rule:
    """An elementwise operator with broadcasting."""

    def rule(tokens: TokenValues, node: ir.Node) -> None:
        output = node.outputs[0]
        shape = token_shape(output)
        operands = [tokens.operand(value, node, len(shape)) for value in node.inputs]
        full = [*tokens.leading_of(*operands), *shape]
        y = tokens.op.node(op_type, operands, full, output.dtype, name=output.name or "")
        tokens.assign(output, with_activation(tokens, node, y))

    return rule


def _chain(*op_types: str) -> Rule:
    """A sequence of elementwise operators of one operand."""

    def rule(tokens: TokenValues, node: ir.Node) -> None:
        output = node.outputs[0]
        x = tokens.operand(node.inputs[0], node, len(token_shape(output)))
        for op_type in op_types:
            x = tokens.op.node(op_type, [x], dims(x), name=output.name or "")
        tokens.assign(output, x)

    return rule


def with_activation(tokens: TokenValues, node: ir.Node, y: ir.Value) -> ir.Value:
    """Apply the activation that is fused into a node.

    Args:
        tokens: The values of the graph.
        node: An operator with `fusedActivationFunction`.
        y: Its result before the activation.

    Returns:
        The result after it; `y` without an activation.

    Raises:
        ModelError: ONNX has no such activation.
    """
    kind = attribute(node, "fusedActivationFunction", 0)
    bounds = {2: (-1, 1), 3: (0, 6)}
    if kind == 0:
        return y
    if kind in bounds:
        limits = [tokens.op.constant(limit, "bound", np.float32) for limit in bounds[kind]]
        return tokens.op.node("Clip", [y, *limits], dims(y), name=f"{y.name}/activated")
    if kind in (1, 4):
        return tokens.op.node("Relu" if kind == 1 else "Tanh", [y], dims(y), name=f"{y.name}/activated")
    raise tokens.error(node, f"no ONNX lowering for its fused activation {kind}")


def _squared(tokens: TokenValues, node: ir.Node) -> None:
    output = node.outputs[0]
    x = tokens.operand(node.inputs[0], node, len(token_shape(output)))
    tokens.assign(output, tokens.op.node("Mul", [x, x], dims(x), name=output.name or ""))


def _squared_difference(tokens: TokenValues, node: ir.Node) -> None:
    output = node.outputs[0]
    shape = token_shape(output)
    x, y = (tokens.operand(value, node, len(shape)) for value in node.inputs)
    full = [*tokens.leading_of(x, y), *shape]
    difference = tokens.op.node("Sub", [x, y], full)
    tokens.assign(output, tokens.op.node("Mul", [difference, difference], full, name=output.name or ""))


def cast(tokens: TokenValues, x: ir.Value, output: ir.Value) -> ir.Value:
    """Convert an ONNX value to the dtype of a Circle value.

    Args:
        tokens: The values of the graph.
        x: An ONNX value.
        output: The Circle value.

    Returns:
        x after a Cast; x itself if it has the dtype.
    """
    assert output.dtype is not None
    if x.dtype == output.dtype:
        return x
    return tokens.op.node("Cast", [x], dims(x), output.dtype, name=output.name or "", to=int(output.dtype))


def _lower_cast(tokens: TokenValues, node: ir.Node) -> None:
    x, output = node.inputs[0], node.outputs[0]
    if node.op_type == "DEQUANTIZE" and (x is None or x.dtype != ir.DataType.FLOAT16 or is_quantized(x)):
        raise tokens.error(node, "dequantizing activations is not supported")
    tokens.assign(output, cast(tokens, tokens.operand(x, node, len(token_shape(output))), output))


def _reshape(tokens: TokenValues, node: ir.Node) -> None:
    output, x = node.outputs[0], node.inputs[0]
    assert x is not None
    tokens.assign(output, tokens.get(x, node))


def permutes_token(node: ir.Node) -> bool:
    """Return whether a layout operator changes the order of a token's elements.

    Args:
        node: A layout operator such as RESHAPE or TRANSPOSE.

    Returns:
        Whether it is a TRANSPOSE that moves more than axes of size 1.
    """
    if node.op_type != "TRANSPOSE":
        return False
    axes, x = constant_ints(node.inputs[1]), node.inputs[0]
    moving = [axis for axis in axes or () if x is None or shape_of(x)[axis] != 1]
    return axes is None or moving != sorted(moving)


def _transpose(tokens: TokenValues, node: ir.Node) -> None:
    x, axes = node.inputs[0], constant_ints(node.inputs[1])
    assert x is not None
    if axes is None:
        raise tokens.error(node, "its permutation is not a constant")
    shape = shape_of(x)
    y = tokens.get(x, node)
    if permutes_token(node):
        leading = range(len(tokens.leading))
        y = tokens.op.reshape(y, [*tokens.leading_of(y), *shape])
        order = [*leading, *(len(leading) + axis for axis in axes)]
        y = tokens.op.transpose(y, order, name=node.outputs[0].name or "")
    tokens.assign(node.outputs[0], y)


def _concatenation(tokens: TokenValues, node: ir.Node) -> None:
    output = node.outputs[0]
    rank = len(shape_of(output))
    axis = attribute(node, "axis", 0) % rank - rank
    keep = max(len(token_shape(output)), -axis)
    parts = []
    for value in node.inputs:
        assert value is not None
        folded = tokens.fold(value)
        if folded is not None:  # a constant needs the leading axes too
            table = np.broadcast_to(folded, shape_of(value)).reshape(shape_of(value)[rank - keep :])
            constant = tokens.op.constant(table, value.name or "constant", table.dtype)
            leading = [tokens.op.constant([1], "one")] * (len(tokens.leading) - 1) + [tokens.count]
            shapes = [*leading, tokens.op.constant(table.shape, "shape")]
            target = tokens.op.node("Concat", shapes, [len(leading) + keep], axis=0)
            parts.append(tokens.op.node("Expand", [constant, target], [*tokens.leading, *table.shape]))
        else:
            parts.append(tokens.reshaped(value, node, shape_of(value)[rank - keep :]))
    shape = [*tokens.leading_of(*parts), *shape_of(output)[rank - keep :]]
    y = tokens.op.node("Concat", parts, shape, name=output.name or "", axis=axis)
    tokens.assign(output, with_activation(tokens, node, y))


def _slice(tokens: TokenValues, node: ir.Node) -> None:
    x, output = node.inputs[0], node.outputs[0]
    assert x is not None
    try:
        bounds = slice_bounds(node)
    except NotEvaluable as reason:
        raise tokens.error(node, str(reason)) from reason
    shape = shape_of(x)
    cut = [axis for axis, bound in enumerate(bounds) if bound != (0, shape[axis], 1)]
    if any(bounds[axis][2] < 0 for axis in cut):
        raise tokens.error(node, "negative steps are not supported")
    keep = max(len(token_shape(x)), *(len(shape) - axis for axis in cut), 0) if cut else len(token_shape(x))
    y = tokens.reshaped(x, node, shape[len(shape) - keep :])
    if cut:
        columns = zip(*(bounds[axis] for axis in cut), strict=True)
        starts, stops, steps = (
            tokens.op.constant(list(column), name)
            for name, column in zip(("starts", "ends", "steps"), columns, strict=True)
        )
        axes = tokens.op.constant([axis - len(shape) for axis in cut], "axes")
        new_shape = [*tokens.leading_of(y), *shape_of(output)[len(shape) - keep :]]
        y = tokens.op.node("Slice", [y, starts, stops, axes, steps], new_shape, name=output.name or "")
    tokens.assign(output, y)


def _split(tokens: TokenValues, node: ir.Node) -> None:
    if node.op_type == "SPLIT_V":
        x, sizes, axes = node.inputs[0], constant_ints(node.inputs[1]), constant_ints(node.inputs[2])
    else:
        x, sizes, axes = node.inputs[1], [], constant_ints(node.inputs[0])
    assert x is not None
    if axes is None or sizes is None:
        raise tokens.error(node, "its axis or its sizes are not constants")
    shape = shape_of(x)
    axis = axes[0] % len(shape) - len(shape)
    keep = max(len(token_shape(x)), -axis)
    operand = tokens.reshaped(x, node, shape[len(shape) - keep :])
    lengths = [shape_of(output)[axis] for output in node.outputs]
    parts = []
    for output, length in zip(node.outputs, lengths, strict=True):
        part_shape = dims(operand)
        part_shape[axis] = length
        assert operand.dtype is not None
        parts.append(tokens.op.value(output.name or "part", operand.dtype, part_shape))
    tokens.op.add("Split", [operand, tokens.op.constant(lengths, "lengths")], parts, axis=axis)
    for output, part in zip(node.outputs, parts, strict=True):
        tokens.assign(output, part)


def _reduce(op_type: str) -> Rule:
    def rule(tokens: TokenValues, node: ir.Node) -> None:
        x, axes = node.inputs[0], constant_ints(node.inputs[1])
        assert x is not None
        if axes is None:
            raise tokens.error(node, "its axes are not constants")
        shape = shape_of(x)
        reduced = sorted({axis % len(shape) - len(shape) for axis in axes if shape[axis] != 1})
        keep = max([len(token_shape(x)), *(-axis for axis in reduced)])
        y = tokens.reshaped(x, node, shape[len(shape) - keep :])
        if reduced:
            new_shape = [1 if i - len(dims(y)) in reduced else dim for i, dim in enumerate(dims(y))]
            operands = [y, tokens.op.constant(reduced, "axes")]
            y = tokens.op.node(op_type, operands, new_shape, name=node.outputs[0].name or "", keepdims=1)
        tokens.assign(node.outputs[0], y)

    return rule


def _softmax(tokens: TokenValues, node: ir.Node) -> None:
    output = node.outputs[0]
    if attribute(node, "beta", 1.0) != 1:
        raise tokens.error(node, "its beta is not 1")
    x = tokens.operand(node.inputs[0], node, len(token_shape(output)) or 1)
    tokens.assign(output, tokens.op.node("Softmax", [x], dims(x), name=output.name or "", axis=-1))


def _batch_matmul(tokens: TokenValues, node: ir.Node) -> None:
    output = node.outputs[0]
    rank = max(2, len(token_shape(output)), *(len(token_shape(v)) for v in node.inputs if v is not None))
    sides = []
    for value, adjoint in zip(node.inputs, ("adjointLhs", "adjointRhs"), strict=False):
        side = tokens.operand(value, node, rank)
        if len(dims(side)) < 2:  # a constant [1, D]
            side = tokens.op.reshape(side, shape_of(value)[-2:])  # type: ignore[arg-type]
        if attribute(node, adjoint, 0):
            axes = range(len(dims(side)))
            side = tokens.op.transpose(side, [*axes[:-2], axes[-1], axes[-2]])
        sides.append(side)
    full = shape_of(output)
    shape = [*tokens.leading_of(*sides), *(1,) * (rank - len(full)), *full[max(0, len(full) - rank) :]]
    tokens.assign(output, tokens.op.node("MatMul", sides, shape, name=output.name or ""))


def _gelu(tokens: TokenValues, node: ir.Node) -> None:
    output = node.outputs[0]
    x = tokens.operand(node.inputs[0], node, len(token_shape(output)))
    approximation = "tanh" if attribute(node, "approximate", False) else "none"
    y = tokens.op.node("Gelu", [x], dims(x), name=output.name or "", approximate=approximation)
    tokens.assign(output, y)


def constant_vector(tokens: TokenValues, value: ir.Value | None, node: ir.Node) -> ir.Value:
    """Return a constant vector, such as the weight of a norm or a bias.

    Args:
        tokens: The values of the graph.
        value: A constant of D elements.
        node: The node that takes it, for messages.

    Returns:
        The ONNX constant [D].

    Raises:
        ModelError: It is missing, quantized or not a constant.
    """
    array = None if value is None else tokens.fold(value)
    if array is None or value is None:
        raise tokens.error(node, "its weight is not a constant")
    return tokens.op.constant(array.reshape(-1), value.name or "weight", array.dtype)


RULES: dict[str, Rule] = {
    "ADD": _elementwise("Add"),
    "SUB": _elementwise("Sub"),
    "MUL": _elementwise("Mul"),
    "DIV": _elementwise("Div"),
    "MAXIMUM": _elementwise("Max"),
    "MINIMUM": _elementwise("Min"),
    "POW": _elementwise("Pow"),
    "SQUARED_DIFFERENCE": _squared_difference,
    "NEG": _chain("Neg"),
    "ABS": _chain("Abs"),
    "SQRT": _chain("Sqrt"),
    "RSQRT": _chain("Sqrt", "Reciprocal"),
    "SQUARE": _squared,
    "EXP": _chain("Exp"),
    "LOG": _chain("Log"),
    "SIN": _chain("Sin"),
    "COS": _chain("Cos"),
    "TANH": _chain("Tanh"),
    "LOGISTIC": _chain("Sigmoid"),
    "RELU": _chain("Relu"),
    "GELU": _gelu,
    "FLOOR": _chain("Floor"),
    "CEIL": _chain("Ceil"),
    "CAST": _lower_cast,
    "DEQUANTIZE": _lower_cast,
    "LESS": _elementwise("Less"),
    "LESS_EQUAL": _elementwise("LessOrEqual"),
    "GREATER": _elementwise("Greater"),
    "GREATER_EQUAL": _elementwise("GreaterOrEqual"),
    "EQUAL": _elementwise("Equal"),
    "LOGICAL_AND": _elementwise("And"),
    "LOGICAL_OR": _elementwise("Or"),
    "LOGICAL_NOT": _chain("Not"),
    "SELECT_V2": _elementwise("Where"),
    "RESHAPE": _reshape,
    "EXPAND_DIMS": _reshape,
    "SQUEEZE": _reshape,
    "TRANSPOSE": _transpose,
    "CONCATENATION": _concatenation,
    "SLICE": _slice,
    "STRIDED_SLICE": _slice,
    "SPLIT": _split,
    "SPLIT_V": _split,
    "MEAN": _reduce("ReduceMean"),
    "SUM": _reduce("ReduceSum"),
    "REDUCE_MAX": _reduce("ReduceMax"),
    "REDUCE_MIN": _reduce("ReduceMin"),
    "SOFTMAX": _softmax,
    "BATCH_MATMUL": _batch_matmul,
}
