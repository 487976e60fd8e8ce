"""Comparisons, logic and selection."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from o2o.raising.arithmetic import binary
from o2o.raising.operation import BOOL, Operation, Rules


def _not(of: Operation) -> ir.Value:
    return of.emit("LOGICAL_NOT", of.operand())


def _where(of: Operation) -> ir.Value:
    return of.emit("SELECT_V2", of.operand(0), of.operand(1), of.operand(2), dtype=of.operand(1).dtype)


def _is_nan(of: Operation) -> ir.Value:
    return of.emit("NOT_EQUAL", of.operand(), of.operand(), dtype=BOOL)


def _is_inf(of: Operation) -> ir.Value:
    x = of.operand()
    ups, downs = of.get("detect_positive", 1), of.get("detect_negative", 1)
    if not (ups or downs):
        of.refuse("it detects neither positive nor negative infinity")
    y = of.emit("ABS", x) if ups and downs else x
    return of.emit("EQUAL", y, of.like(np.inf if ups else -np.inf, x), dtype=BOOL)


RULES: Rules = {
    "And": binary("LOGICAL_AND", BOOL),
    "Or": binary("LOGICAL_OR", BOOL),
    "Xor": binary("NOT_EQUAL", BOOL),
    "Not": _not,
    "Equal": binary("EQUAL", BOOL),
    "Less": binary("LESS", BOOL),
    "LessOrEqual": binary("LESS_EQUAL", BOOL),
    "Greater": binary("GREATER", BOOL),
    "GreaterOrEqual": binary("GREATER_EQUAL", BOOL),
    "Where": _where,
    "IsNaN": _is_nan,
    "IsInf": _is_inf,
}
