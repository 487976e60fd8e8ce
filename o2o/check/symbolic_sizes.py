"""Sizes of symbolic dimensions for a run: chosen by their names, so that they agree.

batch_size 1      sequence_length 4      past_sequence_length 4
past_sequence_length + sequence_length, total_sequence_length: the sum, 8
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterable, Mapping

EXAMPLE = 4
"""The size of a symbolic dimension in the first runs."""

_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.floordiv,
    ast.Mod: operator.mod,
}


def sizes_of(symbols: Iterable[str], size: int) -> dict[str, int]:
    """Choose the size of each symbolic dimension of a model's inputs and outputs.

    Args:
        symbols: Names, or expressions such as `past_sequence_length + 1`.
        size: The size of a dimension that no rule of this module concerns.

    Returns:
        The sizes.
    """
    symbols = list(dict.fromkeys(symbols))
    names = [symbol for symbol in symbols if symbol.isidentifier()]
    sizes = {name: 1 if "batch" in name else size for name in names}
    past = [name for name in names if "past" in name]
    tokens = [name for name in names if "seq" in name and "past" not in name and "total" not in name]
    for name in names:
        if "total" in name and past and tokens:
            sizes[name] = sizes[past[0]] + sizes[tokens[0]]
    for symbol in symbols:
        if symbol not in sizes:
            value = evaluated(symbol, sizes)
            sizes[symbol] = size if value is None else value
    return sizes


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
