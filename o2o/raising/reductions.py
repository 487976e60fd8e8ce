"""Sums, means, extremes and running sums over axes, and softmax."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from o2o.model import shape_of
from o2o.raising.operation import INT64, Operation, Rule, Rules

Step = Callable[[Operation, ir.Value], ir.Value]


def _same(of: Operation, x: ir.Value) -> ir.Value:
    return x


def _unary(op_type: str) -> Step:
    return lambda of, x: of.emit(op_type, x)


def _squared(of: Operation, x: ir.Value) -> ir.Value:
    return of.emit("MUL", x, x)


_OF_BOOL = {"REDUCE_MAX": "REDUCE_ANY", "REDUCE_MIN": "REDUCE_ALL"}


def _reduce(op_type: str, before: Step = _same, after: Step = _same) -> Rule:
    """A reduction of `before(x)`, whose result becomes `after`."""

    def rule(of: Operation) -> ir.Value:
        axes = reduced_axes(of)
        if axes is None:
            return of.operand()
        x = before(of, of.operand())
        kind = _OF_BOOL.get(op_type, op_type) if x.dtype == ir.DataType.BOOL else op_type
        return after(of, of.emit(kind, x, of.indices(axes, "axes"), keepDims=bool(of.get("keepdims", 1))))

    return rule


def reduced_axes(of: Operation) -> list[int] | None:
    """Return the axes of a reduction.

    Args:
        of: The operation.

    Returns:
        The axes; None if nothing is reduced.
    """
    rank = len(shape_of(of.operand()))
    axes = of.ints_of("axes", 1)
    if axes is None or axes == []:
        return None if of.get("noop_with_empty_axes", 0) or rank == 0 else list(range(rank))
    return [of.axis(axis, rank) for axis in axes]


def _log_sum_exp(of: Operation) -> ir.Value:
    axes = reduced_axes(of)
    x = of.operand()
    if axes is None:
        return x
    over = of.indices(axes, "axes")
    largest = of.emit("REDUCE_MAX", x, over, keepDims=True)
    total = of.emit("SUM", of.emit("EXP", of.emit("SUB", x, largest)), over, keepDims=True)
    result = of.emit("ADD", of.emit("LOG", total), largest)
    if of.get("keepdims", 1):
        return result
    return of.reshape(result, [dim for axis, dim in enumerate(shape_of(x)) if axis not in axes])


def _over_last(op_type: str) -> Rule:
    """An operator over an axis, which Circle has over the last one."""

    def rule(of: Operation) -> ir.Value:
        x = of.operand()
        shape, rank = shape_of(x), len(shape_of(x))
        axis = of.axis(int(of.get("axis", -1 if of.opset >= 13 else 1)), rank)
        options: dict[str, Any] = {"beta": 1.0} if op_type == "SOFTMAX" else {}
        if of.opset < 13:  # all axes from this one are one axis
            flat = of.reshape(x, [math.prod(shape[:axis]), math.prod(shape[axis:])])
            if math.prod(shape[axis + 1 :]) == 1 and axis == rank - 1:
                return of.emit(op_type, x, **options)
            return of.reshape(of.emit(op_type, flat, **options), shape)
        order = [*(place for place in range(rank) if place != axis), axis]
        back = [order.index(place) for place in range(rank)]
        return of.transpose(of.emit(op_type, of.transpose(x, order), **options), back)

    return rule


def _arg(op_type: str) -> Rule:
    def rule(of: Operation) -> ir.Value:
        x = of.operand()
        shape = shape_of(x)
        axis = of.axis(int(of.get("axis", 0)), len(shape))
        is_last = bool(of.get("select_last_index", 0))
        x = of.emit("REVERSE_V2", x, of.indices([axis], "axes"), shape=shape) if is_last else x
        y = of.emit(op_type, x, of.indices(axis, "axis"), dtype=INT64, outputType=of.dtype_code(INT64))
        if is_last:
            y = of.emit("SUB", of.like(shape[axis] - 1, y), y)
        if not of.get("keepdims", 1):
            return y
        return of.reshape(y, [1 if place == axis else dim for place, dim in enumerate(shape)])

    return rule


def _cumsum(of: Operation) -> ir.Value:
    x = of.operand()
    axis = of.axis(of.ints(1)[0], len(shape_of(x)))
    exclusive, reverse = (bool(of.get(name, 0)) for name in ("exclusive", "reverse"))
    return of.emit("CUMSUM", x, of.indices(axis, "axis"), exclusive=exclusive, reverse=reverse)


RULES: Rules = {
    "ReduceMean": _reduce("MEAN"),
    "ReduceSum": _reduce("SUM"),
    "ReduceMax": _reduce("REDUCE_MAX"),
    "ReduceMin": _reduce("REDUCE_MIN"),
    "ReduceProd": _reduce("REDUCE_PROD"),
    "ReduceL1": _reduce("SUM", before=_unary("ABS")),
    "ReduceL2": _reduce("SUM", before=_squared, after=_unary("SQRT")),
    "ReduceSumSquare": _reduce("SUM", before=_squared),
    "ReduceLogSum": _reduce("SUM", after=_unary("LOG")),
    "ReduceLogSumExp": _log_sum_exp,
    "Softmax": _over_last("SOFTMAX"),
    "LogSoftmax": _over_last("LOG_SOFTMAX"),
    "ArgMax": _arg("ARG_MAX"),
    "ArgMin": _arg("ARG_MIN"),
    "CumSum": _cumsum,
}
