"""Circle's plain operators in ONNX, T tokens at a time (`o2o.lower.onnx.per_token`).

Axes are counted from the end: in front of what one token has stand T, or 1 and T.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import is_quantized, numbers
from o2o.lower.onnx.builder import dims
from o2o.lower.onnx.per_token import Tokens, inner
from o2o.model import attribute, shape_of
from o2o.operators.reference import NotEvaluable, slice_bounds
from o2o.rewriting.matchers import constant_ints

Rule = Callable[[Tokens, ir.Node], None]


def lower_operator(tokens: Tokens, node: ir.Node) -> None:
    """Raises ModelError for an operator that has no rule here, or cannot be done for each token alone."""
    rule = RULES.get(node.op_type)
    if rule is None:
        raise tokens.refuse(node, "ONNX has no such operator, or it is not known here how to do it by token")
    rule(tokens, node)


def _elementwise(op_type: str) -> Rule:
    """An operator that goes by element, after broadcasting."""

    def rule(tokens: Tokens, node: ir.Node) -> None:
        output = node.outputs[0]
        shape = inner(output)
        operands = [tokens.operand(value, node, len(shape)) for value in node.inputs]
        full = [*tokens.front_of(*operands), *shape]
        y = tokens.op.node(op_type, operands, full, output.dtype, name=output.name or "")
        tokens.put(output, activated(tokens, node, y))

    return rule


def _chain(*op_types: str) -> Rule:
    """Operators of one operand, one behind the other."""

    def rule(tokens: Tokens, node: ir.Node) -> None:
        output = node.outputs[0]
        x = tokens.operand(node.inputs[0], node, len(inner(output)))
        for op_type in op_types:
            x = tokens.op.node(op_type, [x], dims(x), name=output.name or "")
        tokens.put(output, x)

    return rule


def activated(tokens: Tokens, node: ir.Node, y: ir.Value) -> ir.Value:
    """`y` with the activation that is fused into `node`: see `o2o.operators.reference`."""
    kind = attribute(node, "fusedActivationFunction", 0)
    bounds = {2: (-1, 1), 3: (0, 6)}
    if kind == 0:
        return y
    if kind in bounds:
        ends = [tokens.op.constant(end, "bound", np.float32) for end in bounds[kind]]
        return tokens.op.node("Clip", [y, *ends], dims(y), name=f"{y.name}/activated")
    if kind in (1, 4):
        return tokens.op.node("Relu" if kind == 1 else "Tanh", [y], dims(y), name=f"{y.name}/activated")
    raise tokens.refuse(node, f"its fused activation {kind} has no meaning in ONNX")


def _squared(tokens: Tokens, node: ir.Node) -> None:
    output = node.outputs[0]
    x = tokens.operand(node.inputs[0], node, len(inner(output)))
    tokens.put(output, tokens.op.node("Mul", [x, x], dims(x), name=output.name or ""))


def _squared_difference(tokens: Tokens, node: ir.Node) -> None:
    output = node.outputs[0]
    shape = inner(output)
    x, y = (tokens.operand(value, node, len(shape)) for value in node.inputs)
    full = [*tokens.front_of(x, y), *shape]
    difference = tokens.op.node("Sub", [x, y], full)
    tokens.put(output, tokens.op.node("Mul", [difference, difference], full, name=output.name or ""))


def cast(tokens: Tokens, x: ir.Value, output: ir.Value) -> ir.Value:
    """`x` in the dtype that `output` has."""
    assert output.dtype is not None
    if x.dtype == output.dtype:
        return x
    return tokens.op.node("Cast", [x], dims(x), output.dtype, name=output.name or "", to=int(output.dtype))


def _cast(tokens: Tokens, node: ir.Node) -> None:
    x, output = node.inputs[0], node.outputs[0]
    if node.op_type == "DEQUANTIZE" and (x is None or x.dtype != ir.DataType.FLOAT16 or is_quantized(x)):
        raise tokens.refuse(node, "it turns back what is quantised on the way")
    tokens.put(output, cast(tokens, tokens.operand(x, node, len(inner(output))), output))


def _reshape(tokens: Tokens, node: ir.Node) -> None:
    output, x = node.outputs[0], node.inputs[0]
    assert x is not None
    tokens.put(output, tokens.get(x, node))


def mixes_token(node: ir.Node) -> bool:
    """Whether `node`, a layout operator, puts the numbers of a token in another order, as does a TRANSPOSE of
    more than axes of size 1."""
    if node.op_type != "TRANSPOSE":
        return False
    axes, x = constant_ints(node.inputs[1]), node.inputs[0]
    moving = [axis for axis in axes or () if x is None or shape_of(x)[axis] != 1]
    return axes is None or moving != sorted(moving)


def _transpose(tokens: Tokens, node: ir.Node) -> None:
    x, axes = node.inputs[0], constant_ints(node.inputs[1])
    assert x is not None
    if axes is None:
        raise tokens.refuse(node, "its permutation is not constant")
    shape = shape_of(x)
    found = tokens.get(x, node)
    if mixes_token(node):
        front = range(len(tokens.front))
        found = tokens.op.reshape(found, [*tokens.front_of(found), *shape])
        order = [*front, *(len(front) + axis for axis in axes)]
        found = tokens.op.transpose(found, order, name=node.outputs[0].name or "")
    tokens.put(node.outputs[0], found)


def _concatenation(tokens: Tokens, node: ir.Node) -> None:
    output = node.outputs[0]
    rank = len(shape_of(output))
    axis = attribute(node, "axis", 0) % rank - rank
    keep = max(len(inner(output)), -axis)
    parts = []
    for value in node.inputs:
        assert value is not None
        folded = tokens.fold(value)
        if folded is not None:  # constants have no T to be joined along
            table = np.broadcast_to(folded, shape_of(value)).reshape(shape_of(value)[rank - keep :])
            constant = tokens.op.constant(table, value.name or "constant", table.dtype)
            front = [tokens.op.constant([1], "one")] * (len(tokens.front) - 1) + [tokens.count]
            shapes = [*front, tokens.op.constant(table.shape, "shape")]
            target = tokens.op.node("Concat", shapes, [len(front) + keep], axis=0)
            parts.append(tokens.op.node("Expand", [constant, target], [*tokens.front, *table.shape]))
        else:
            parts.append(tokens.viewed(value, node, shape_of(value)[rank - keep :]))
    shape = [*tokens.front_of(*parts), *shape_of(output)[rank - keep :]]
    y = tokens.op.node("Concat", parts, shape, name=output.name or "", axis=axis)
    tokens.put(output, activated(tokens, node, y))


def _slice(tokens: Tokens, node: ir.Node) -> None:
    x, output = node.inputs[0], node.outputs[0]
    assert x is not None
    try:
        bounds = slice_bounds(node)
    except NotEvaluable as reason:
        raise tokens.refuse(node, str(reason)) from reason
    shape = shape_of(x)
    cut = [axis for axis, bound in enumerate(bounds) if bound != (0, shape[axis], 1)]
    if any(bounds[axis][2] < 0 for axis in cut):
        raise tokens.refuse(node, "it goes backwards")
    keep = max(len(inner(x)), *(len(shape) - axis for axis in cut), 0) if cut else len(inner(x))
    found = tokens.viewed(x, node, shape[len(shape) - keep :])
    if cut:
        named = zip(
            ("starts", "ends", "steps"), zip(*(bounds[axis] for axis in cut), strict=True), strict=True
        )
        starts, ends, steps = (tokens.op.constant(list(those), name) for name, those in named)
        axes = tokens.op.constant([axis - len(shape) for axis in cut], "axes")
        after = [*tokens.front_of(found), *shape_of(output)[len(shape) - keep :]]
        found = tokens.op.node("Slice", [found, starts, ends, axes, steps], after, name=output.name or "")
    tokens.put(output, found)


def _split(tokens: Tokens, node: ir.Node) -> None:
    if node.op_type == "SPLIT_V":
        x, sizes, axes = node.inputs[0], constant_ints(node.inputs[1]), constant_ints(node.inputs[2])
    else:
        x, sizes, axes = node.inputs[1], [], constant_ints(node.inputs[0])
    assert x is not None
    if axes is None or sizes is None:
        raise tokens.refuse(node, "its axis or its sizes are not constant")
    shape = shape_of(x)
    axis = axes[0] % len(shape) - len(shape)
    keep = max(len(inner(x)), -axis)
    found = tokens.viewed(x, node, shape[len(shape) - keep :])
    lengths = [shape_of(output)[axis] for output in node.outputs]
    parts = []
    for output, length in zip(node.outputs, lengths, strict=True):
        after = dims(found)
        after[axis] = length
        assert found.dtype is not None
        parts.append(tokens.op.value(output.name or "part", found.dtype, after))
    tokens.op.add("Split", [found, tokens.op.constant(lengths, "lengths")], parts, axis=axis)
    for output, part in zip(node.outputs, parts, strict=True):
        tokens.put(output, part)


def _reduce(op_type: str) -> Rule:
    def rule(tokens: Tokens, node: ir.Node) -> None:
        x, axes = node.inputs[0], constant_ints(node.inputs[1])
        assert x is not None
        if axes is None:
            raise tokens.refuse(node, "its axes are not constant")
        shape = shape_of(x)
        behind = sorted({axis % len(shape) - len(shape) for axis in axes if shape[axis] != 1})
        keep = max([len(inner(x)), *(-axis for axis in behind)])
        found = tokens.viewed(x, node, shape[len(shape) - keep :])
        if behind:
            after = [1 if i - len(dims(found)) in behind else dim for i, dim in enumerate(dims(found))]
            operands = [found, tokens.op.constant(behind, "axes")]
            found = tokens.op.node(op_type, operands, after, name=node.outputs[0].name or "", keepdims=1)
        tokens.put(node.outputs[0], found)

    return rule


def _softmax(tokens: Tokens, node: ir.Node) -> None:
    output = node.outputs[0]
    if attribute(node, "beta", 1.0) != 1:
        raise tokens.refuse(node, "its beta is not 1")
    x = tokens.operand(node.inputs[0], node, len(inner(output)) or 1)
    tokens.put(output, tokens.op.node("Softmax", [x], dims(x), name=output.name or "", axis=-1))


def _matmul(tokens: Tokens, node: ir.Node) -> None:
    output = node.outputs[0]
    rank = max(2, len(inner(output)), *(len(inner(v)) for v in node.inputs if v is not None))
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
    shape = [*tokens.front_of(*sides), *(1,) * (rank - len(full)), *full[max(0, len(full) - rank) :]]
    tokens.put(output, tokens.op.node("MatMul", sides, shape, name=output.name or ""))


def _gelu(tokens: Tokens, node: ir.Node) -> None:
    output = node.outputs[0]
    x = tokens.operand(node.inputs[0], node, len(inner(output)))
    how = "tanh" if attribute(node, "approximate", False) else "none"
    tokens.put(output, tokens.op.node("Gelu", [x], dims(x), name=output.name or "", approximate=how))


def constant_vector(tokens: Tokens, value: ir.Value | None, node: ir.Node) -> ir.Value:
    """The constant [D] `value`, such as the weight of a norm, as it is."""
    array = numbers(value)
    if array is None or value is None or math.prod(array.shape) != array.size:
        raise tokens.refuse(node, "its weight is not a constant")
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
    "CAST": _cast,
    "DEQUANTIZE": _cast,
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
    "BATCH_MATMUL": _matmul,
}
