"""Circle's other operators in ONNX, for T tokens at a time (`o2o.lower.onnx.per_token`).

A new operator needs one entry in `RULES`. Axes are counted from the end, because leading axes are added.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import is_quantized
from o2o.lower.onnx.builder import BOOL, dims
from o2o.lower.onnx.fused_activation import with_activation
from o2o.lower.onnx.layout import LAYOUT_RULES
from o2o.lower.onnx.per_token import Rule, TokenValues, token_shape
from o2o.model import attribute, shape_of
from o2o.operators.traits import is_elementwise
from o2o.rewriting.matchers import constant_ints


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
        reason = f"{node.op_type} has no ONNX lowering: use the LiteRT engine, or report this model"
        raise tokens.error(node, reason)
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


def _with_attributes(op_type: str, **attributes: tuple[str, float]) -> Rule:
    """An elementwise operator of one operand. `attributes`: the name in Circle and the default of each."""

    def rule(tokens: TokenValues, node: ir.Node) -> None:
        output = node.outputs[0]
        x = tokens.operand(node.inputs[0], node, len(token_shape(output)))
        values: dict[str, Any] = {
            name: float(attribute(node, circle, default)) for name, (circle, default) in attributes.items()
        }
        tokens.assign(output, tokens.op.node(op_type, [x], dims(x), name=output.name or "", **values))

    return rule


def _clip(low: float, high: float) -> Rule:
    def rule(tokens: TokenValues, node: ir.Node) -> None:
        output = node.outputs[0]
        x = tokens.operand(node.inputs[0], node, len(token_shape(output)))
        limits = [tokens.op.constant(limit, "limit", np.float32) for limit in (low, high)]
        tokens.assign(output, tokens.op.node("Clip", [x, *limits], dims(x), name=output.name or ""))

    return rule


def _not_equal(tokens: TokenValues, node: ir.Node) -> None:
    output = node.outputs[0]
    _elementwise("Equal")(tokens, node)
    equal = tokens.lowered[output]
    tokens.assign(output, tokens.op.node("Not", [equal], dims(equal), BOOL))


def _select(tokens: TokenValues, node: ir.Node) -> None:
    if not is_elementwise(node):
        raise tokens.error(node, "it selects rows: only SELECT of equal shapes and SELECT_V2 are supported")
    _elementwise("Where")(tokens, node)


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
    x = tokens.operand(node.inputs[0], node, len(token_shape(output)) or 1)
    beta = attribute(node, "beta", 1.0)
    if node.op_type == "SOFTMAX" and beta != 1:
        x = tokens.op.node("Mul", [x, tokens.op.constant(beta, "beta", np.float32)], dims(x))
    op_type = "Softmax" if node.op_type == "SOFTMAX" else "LogSoftmax"
    tokens.assign(output, tokens.op.node(op_type, [x], dims(x), name=output.name or "", axis=-1))


def _cumsum(tokens: TokenValues, node: ir.Node) -> None:
    x, axes = node.inputs[0], constant_ints(node.inputs[1])
    assert x is not None
    if axes is None:
        raise tokens.error(node, "its axis is not a constant")
    shape = shape_of(x)
    axis = axes[0] % len(shape) - len(shape)
    keep = max(len(token_shape(x)), -axis)
    operand = tokens.reshaped(x, node, shape[len(shape) - keep :])
    flags = {name: int(attribute(node, name, 0)) for name in ("exclusive", "reverse")}
    places = [operand, tokens.op.constant(axis, "axis")]
    y = tokens.op.node("CumSum", places, dims(operand), name=node.outputs[0].name or "", **flags)  # type: ignore[arg-type]
    tokens.assign(node.outputs[0], y)


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
    **LAYOUT_RULES,
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
    "RELU6": _clip(0, 6),
    "RELU_N1_TO_1": _clip(-1, 1),
    "LEAKY_RELU": _with_attributes("LeakyRelu", alpha=("alpha", 0.0)),
    "ELU": _with_attributes("Elu"),
    "PRELU": _elementwise("PRelu"),
    "HARD_SWISH": _chain("HardSwish"),
    "GELU": _gelu,
    "SIGN": _chain("Sign"),
    "ROUND": _chain("Round"),
    "FLOOR": _chain("Floor"),
    "CEIL": _chain("Ceil"),
    "CAST": _lower_cast,
    "DEQUANTIZE": _lower_cast,
    "LESS": _elementwise("Less"),
    "LESS_EQUAL": _elementwise("LessOrEqual"),
    "GREATER": _elementwise("Greater"),
    "GREATER_EQUAL": _elementwise("GreaterOrEqual"),
    "EQUAL": _elementwise("Equal"),
    "NOT_EQUAL": _not_equal,
    "LOGICAL_AND": _elementwise("And"),
    "LOGICAL_OR": _elementwise("Or"),
    "LOGICAL_NOT": _chain("Not"),
    "SELECT": _select,
    "SELECT_V2": _elementwise("Where"),
    "MEAN": _reduce("ReduceMean"),
    "SUM": _reduce("ReduceSum"),
    "REDUCE_MAX": _reduce("ReduceMax"),
    "REDUCE_MIN": _reduce("ReduceMin"),
    "REDUCE_PROD": _reduce("ReduceProd"),
    "SOFTMAX": _softmax,
    "LOG_SOFTMAX": _softmax,
    "CUMSUM": _cumsum,
    "BATCH_MATMUL": _batch_matmul,
}
