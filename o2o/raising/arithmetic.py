"""Elementwise arithmetic, activation functions and conversions of dtypes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from o2o.model import shape_of
from o2o.raising.operation import BOOL, INT32, Operation, Rule, Rules
from o2o.rewriting.matchers import scalar

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


def unary(op_type: str) -> Rule:
    """Make the rule of an operator of one operand.

    Args:
        op_type: The builtin operator.

    Returns:
        The rule.
    """
    return lambda of: of.emit(op_type, of.operand())


def binary(op_type: str, dtype: ir.DataType | None = None) -> Rule:
    """Make the rule of an operator of two operands that are broadcast to each other.

    Args:
        op_type: The builtin operator.
        dtype: The dtype of the result; None for that of the operands.

    Returns:
        The rule.
    """

    def rule(of: Operation) -> ir.Value:
        return in_int32(of, op_type, of.operand(0), of.operand(1), dtype)

    return rule


_NARROW = {
    *(ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16),
}
"""Integers for which runtimes have quantized arithmetic alone, or none."""


def in_int32(
    of: Operation, op_type: str, x: ir.Value, y: ir.Value, dtype: ir.DataType | None = None
) -> ir.Value:
    """Emit an operator of two operands. Narrow integers are computed in int32, and wrap around as in ONNX.

    Args:
        of: The operation.
        op_type: The builtin operator.
        x: The first operand.
        y: The second operand.
        dtype: The dtype of the result; None for that of the operands.

    Returns:
        The result.
    """
    if x.dtype not in _NARROW:
        return of.emit(op_type, x, y, dtype=dtype)
    result = of.emit(op_type, of.cast(x, INT32), of.cast(y, INT32), dtype=dtype)
    return of.cast(result, dtype or x.dtype)


def variadic(op_type: str) -> Rule:
    """Make the rule of an operator of any number of operands.

    Args:
        op_type: The builtin operator of two of them.

    Returns:
        The rule.
    """

    def rule(of: Operation) -> ir.Value:
        result = of.operand(0)
        for index in range(1, len(of.operands)):
            result = in_int32(of, op_type, result, of.operand(index))
        return result

    return rule


def _mean(of: Operation) -> ir.Value:
    total = variadic("ADD")(of)
    assert isinstance(total, ir.Value)
    return total if len(of.operands) == 1 else of.emit("MUL", total, of.like(1 / len(of.operands), total))


def _mul(of: Operation) -> ir.Value:
    x = _erf_gelu(of.node)
    if x is not None and x in of.values:
        return of.emit("GELU", of.values[x])
    return in_int32(of, "MUL", of.operand(0), of.operand(1))


def _div(of: Operation) -> ir.Value:
    x, y = of.operand(0), of.operand(1)
    if x.dtype in _FLOATS:
        if scalar(x) == 1 and (root := _operand_of(y, "SQRT")) is not None:
            return of.emit("RSQRT", root)
        return of.emit("DIV", x, y)
    return _truncated_quotient(of, x, y)


def _truncated_quotient(of: Operation, x: ir.Value, y: ir.Value) -> ir.Value:
    """x / y in integers, rounded to 0, in int32: other integers have no division. Sizes and positions fit."""
    return of.cast(of.emit("DIV", of.cast(x, INT32), of.cast(y, INT32)), x.dtype)


def _mod(of: Operation) -> ir.Value:
    x, y = of.operand(0), of.operand(1)
    if not of.get("fmod", 0) and x.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        wide = (of.cast(value, ir.DataType.FLOAT) for value in (x, y))
        return of.cast(of.emit("FLOOR_MOD", *wide), x.dtype)
    if not of.get("fmod", 0):
        return in_int32(of, "FLOOR_MOD", x, y)
    quotient = _truncated(of, of.emit("DIV", x, y)) if x.dtype in _FLOATS else _truncated_quotient(of, x, y)
    return in_int32(of, "SUB", x, in_int32(of, "MUL", quotient, y))


def _truncated(of: Operation, x: ir.Value) -> ir.Value:
    is_negative = of.emit("LESS", x, of.like(0, x), dtype=BOOL)
    return of.emit("SELECT_V2", is_negative, of.emit("CEIL", x), of.emit("FLOOR", x), dtype=x.dtype)


def _pow(of: Operation) -> ir.Value:
    x, power = of.operand(0), scalar(of.operand(1))
    if power == 2 and shape_of(of.operand(1)) in ((), (1,)) and len(shape_of(x)) > 0:
        return of.emit("MUL", x, x)
    if power in (0.5, -0.5) and x.dtype in _FLOATS and len(shape_of(x)) >= len(shape_of(of.operand(1))):
        return of.emit("SQRT" if power == 0.5 else "RSQRT", x)
    exponent = of.operand(1)
    if x.dtype in _FLOATS or x.dtype == INT32 == exponent.dtype:
        return of.emit("POW", x, of.cast(exponent, x.dtype))
    kind = ir.DataType.FLOAT if exponent.dtype in _FLOATS else INT32
    return of.cast(of.emit("POW", of.cast(x, kind), of.cast(exponent, kind)), x.dtype)


def _reciprocal(of: Operation) -> ir.Value:
    x = of.operand()
    if (root := _operand_of(x, "SQRT")) is not None:
        return of.emit("RSQRT", root)
    return of.emit("DIV", of.like(1, x), x)


def _operand_of(value: ir.Value, op_type: str) -> ir.Value | None:
    """The operand of a raised operator that computes `value`."""
    node = value.producer()
    return node.inputs[0] if node is not None and node.op_type == op_type else None


def _clip(of: Operation) -> ir.Value:
    x = of.operand()
    if "min" in of.node.attributes or "max" in of.node.attributes or of.opset < 11:
        low, high = (of.get(name) for name in ("min", "max"))
        bounds = [None if bound is None else of.like(bound, x) for bound in (low, high)]
    else:
        bounds = [of.operand(index) if of.has(index) else None for index in (1, 2)]
    if [scalar(bound) for bound in bounds] == [0, 6] and x.dtype in _FLOATS:
        return of.emit("RELU6", x)
    for op_type, bound in zip(("MAXIMUM", "MINIMUM"), bounds, strict=True):
        if bound is not None:
            x = of.emit(op_type, x, bound)
    return x


def _gelu(of: Operation) -> ir.Value:
    return of.emit("GELU", of.operand(), approximate=_text(of.get("approximate", "none")) == "tanh")


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


_ERF = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
_ERF_P = 0.3275911


def _erf(of: Operation) -> ir.Value:
    """erf by a polynomial (Abramowitz and Stegun 7.1.26), whose error is at most 1.5e-7.

    GELU around it is raised as a whole: see `_mul`.
    """
    x = of.operand()
    size = of.emit("ABS", x)
    one = of.like(1, x)
    t = of.emit("DIV", one, of.emit("ADD", of.emit("MUL", size, of.like(_ERF_P, x)), one))
    total = of.like(_ERF[-1], x)
    for factor in reversed(_ERF[:-1]):
        total = of.emit("ADD", of.emit("MUL", t, total), of.like(factor, x))
    decay = of.emit("EXP", of.emit("NEG", of.emit("MUL", x, x)))
    rest = of.emit("MUL", of.emit("MUL", t, total), decay)
    return of.emit("MUL", of.emit("SIGN", x), of.emit("SUB", one, rest))


def _erf_gelu(node: ir.Node) -> ir.Value | None:
    """x, if an ONNX Mul is the last operator of x (1 + erf(x / sqrt(2))) / 2, in any order of its factors."""
    factors = _factors(node)
    total, halves, x = None, 1.0, []
    for value in factors:
        number = _number(value)
        if number is not None:
            halves *= number
        elif total is None and (inner := _one_plus_erf(value)) is not None:
            total = inner
        else:
            x.append(value)
    if total is None or len(x) != 1 or not math.isclose(halves, 0.5, rel_tol=1e-4):
        return None
    scaled = _scaled(total)
    return x[0] if scaled is not None and scaled[0] is x[0] and _is_root_half(scaled[1]) else None


def _is_root_half(number: float) -> bool:
    return math.isclose(number, math.sqrt(0.5), rel_tol=1e-4)


def _factors(node: ir.Node, depth: int = 2) -> list[ir.Value]:
    """The factors of nested products of an ONNX node; the constant ones may be factors of Div."""
    factors: list[ir.Value] = []
    for value in node.inputs:
        inner = value.producer() if value is not None else None
        if depth and inner is not None and inner.domain == "" and inner.op_type == "Mul":
            factors += _factors(inner, depth - 1)
        elif value is not None:
            factors.append(value)
    return factors


def _one_plus_erf(value: ir.Value) -> ir.Value | None:
    """y, if `value` is 1 + Erf(y)."""
    node = value.producer()
    if node is None or node.op_type != "Add" or node.domain != "":
        return None
    for first, second in (node.inputs, node.inputs[::-1]):
        erf = first.producer() if first is not None else None
        if erf is not None and erf.op_type == "Erf" and _number(second) == 1:
            return erf.inputs[0]
    return None


def _scaled(value: ir.Value) -> tuple[ir.Value, float] | None:
    """(x, c), if `value` is x * c or x / (1 / c)."""
    node = value.producer()
    if node is None or node.domain != "" or node.op_type not in ("Mul", "Div"):
        return None
    first, second = node.inputs
    number = _number(second)
    if number is not None and first is not None and number != 0:
        return first, 1 / number if node.op_type == "Div" else number
    if node.op_type == "Mul" and second is not None and (number := _number(first)) is not None:
        return second, number
    return None


def _number(value: ir.Value | None) -> float | None:
    """The number of an ONNX constant of one element."""
    tensor = value.const_value if value is not None and not value.is_graph_input() else None
    if tensor is None or tensor.size != 1 or tensor.dtype not in _FLOATS:
        return None
    return float(np.asarray(tensor.numpy(), np.float64).reshape(-1)[0])


# ---- activation functions ----------------------------------------------------------------------------


def _leaky_relu(of: Operation) -> ir.Value:
    return of.emit("LEAKY_RELU", of.operand(), alpha=float(of.get("alpha", 0.01)))


def _elu(of: Operation) -> ir.Value:
    x, alpha = of.operand(), float(of.get("alpha", 1.0))
    if alpha == 1:
        return of.emit("ELU", x)
    below = of.emit(
        "MUL", of.emit("SUB", of.emit("EXP", _negative_part(of, x)), of.like(1, x)), of.like(alpha, x)
    )
    return of.emit("ADD", of.emit("RELU", x), below)


def _negative_part(of: Operation, x: ir.Value) -> ir.Value:
    return of.emit("MINIMUM", x, of.like(0, x))


def _prelu(of: Operation) -> ir.Value:
    x = of.operand()
    below = of.emit("MUL", _negative_part(of, x), of.operand(1))
    return of.emit("ADD", of.emit("RELU", x), below)


def _hard_sigmoid(of: Operation) -> ir.Value:
    x = of.operand()
    alpha, beta = float(of.get("alpha", 0.2)), float(of.get("beta", 0.5))
    y = of.emit("ADD", of.emit("MUL", x, of.like(alpha, x)), of.like(beta, x))
    return of.emit("MINIMUM", of.emit("MAXIMUM", y, of.like(0, x)), of.like(1, x))


def _softplus(of: Operation) -> ir.Value:
    """log(1 + exp(x)), written so that exp does not overflow."""
    x = of.operand()
    decay = of.emit("EXP", of.emit("NEG", of.emit("ABS", x)))
    return of.emit("ADD", of.emit("RELU", x), of.emit("LOG", of.emit("ADD", decay, of.like(1, x))))


def _swish(of: Operation) -> ir.Value:
    x, alpha = of.operand(), float(of.get("alpha", 1.0))
    inner = x if alpha == 1 else of.emit("MUL", x, of.like(alpha, x))
    return of.emit("MUL", x, of.emit("LOGISTIC", inner))


def _ratio(first: str, second: str) -> Rule:
    return lambda of: of.emit("DIV", of.emit(first, of.operand()), of.emit(second, of.operand()))


def _of_exponentials(sign: int) -> Rule:
    """sinh, cosh: (exp(x) + sign exp(-x)) / 2."""

    def rule(of: Operation) -> ir.Value:
        x = of.operand()
        up, down = of.emit("EXP", x), of.emit("EXP", of.emit("NEG", x))
        return of.emit("MUL", of.emit("ADD" if sign > 0 else "SUB", up, down), of.like(0.5, x))

    return rule


# ---- dtypes ------------------------------------------------------------------------------------------


def convert(of: Operation, x: ir.Value, dtype: ir.DataType) -> ir.Value:
    """Convert numbers as ONNX does: everything but 0 becomes true.

    Args:
        of: The operation.
        x: The numbers.
        dtype: The dtype of the result.

    Returns:
        The converted numbers; `x` itself if it has the dtype.
    """
    if dtype == ir.DataType.STRING or x.dtype == ir.DataType.STRING:
        of.refuse("it converts strings")
    if dtype == BOOL and x.dtype != BOOL:
        return of.emit("NOT_EQUAL", x, of.like(0, x), dtype=BOOL)
    return of.cast(x, dtype)


def _cast(of: Operation) -> ir.Value:
    return convert(of, of.operand(), ir.DataType(int(of.get("to"))))


def _cast_like(of: Operation) -> ir.Value:
    like = of.operand(1).dtype
    assert like is not None
    return convert(of, of.operand(), like)


def _dropout(of: Operation) -> Sequence[ir.Value]:
    if of.has(2) and of.array(2).any():
        of.refuse("it trains: its results are random")
    return _identity(of)


def _identity(of: Operation) -> Sequence[ir.Value]:
    return [of.operand()]


RULES: Rules = {
    "Add": binary("ADD"),
    "Sub": binary("SUB"),
    "Mul": _mul,
    "Div": _div,
    "Mod": _mod,
    "Pow": _pow,
    "Sum": variadic("ADD"),
    "Mean": _mean,
    "Max": variadic("MAXIMUM"),
    "Min": variadic("MINIMUM"),
    "Clip": _clip,
    "Neg": unary("NEG"),
    "Abs": unary("ABS"),
    "Sqrt": unary("SQRT"),
    "Reciprocal": _reciprocal,
    "Exp": unary("EXP"),
    "Log": unary("LOG"),
    "Sin": unary("SIN"),
    "Cos": unary("COS"),
    "Tan": _ratio("SIN", "COS"),
    "Sinh": _of_exponentials(-1),
    "Cosh": _of_exponentials(1),
    "Tanh": unary("TANH"),
    "Sigmoid": unary("LOGISTIC"),
    "Erf": _erf,
    "Floor": unary("FLOOR"),
    "Ceil": unary("CEIL"),
    "Round": unary("ROUND"),
    "Sign": unary("SIGN"),
    "Relu": unary("RELU"),
    "LeakyRelu": _leaky_relu,
    "PRelu": _prelu,
    "Elu": _elu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": unary("HARD_SWISH"),
    "Softplus": _softplus,
    "Swish": _swish,
    "Gelu": _gelu,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Identity": _identity,
    "Dropout": _dropout,
}
