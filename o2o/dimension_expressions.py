"""Expressions in the names of symbolic dimensions, such as `past_sequence_length + 1`."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping

_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.floordiv,
    ast.Mod: operator.mod,
}


def evaluated(expression: str, sizes: Mapping[str, int]) -> int | None:
    """Compute the size that an expression gives.

    Args:
        expression: Names and whole numbers with `+ - * // / %`.
        sizes: The sizes of names.

    Returns:
        The size; None if it is no such expression, or has an unknown name.
    """

    def value(node: ast.expr) -> int:
        match node:
            case ast.Constant(value=int(number)):
                return number
            case ast.Name(id=name):
                return sizes[name]
            case ast.BinOp(left, op, right):
                return _OPERATORS[type(op)](value(left), value(right))
        raise KeyError(expression)

    try:
        return value(ast.parse(expression, mode="eval").body)
    except (SyntaxError, KeyError, ZeroDivisionError, ValueError):
        return None
