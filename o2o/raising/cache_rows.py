"""Rows of caches, for the rules of operators that write them: TensorScatter, attention with a past."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import constant_array
from o2o.model import shape_of
from o2o.raising.operation import INT32, Operation, Rules
from o2o.raising.scatter import write_rows
from o2o.rewriting.matchers import producer_of


def write_at(of: Operation, cache: ir.Value, rows: ir.Value, start: ir.Value | int, axis: int) -> ir.Value:
    """Write consecutive rows into a cache, for each text from a position of its own.

    Args:
        of: The node that is raised.
        cache: The cache; its first axis is the text, unless it is `axis`.
        rows: The new rows; they have the shape of the cache except on `axis`.
        start: The position of the first row: a number, or integers [B] or [1].
        axis: The axis of the positions.

    Returns:
        The cache with the new rows.
    """
    shape, new = shape_of(cache), shape_of(rows)
    if isinstance(start, int):
        return write_rows(of, cache, rows, axis, of.indices([start], "position"))
    start = of.cast(start, INT32)
    if axis == 0 or shape[0] == 1 or math.prod(shape_of(start)) == 1:
        return write_rows(of, cache, rows, axis, start)
    texts = []
    for text in range(shape[0]):
        first = [text, *[0] * (len(shape) - 1)]
        old = of.op.slice(cache, first, [1, *shape[1:]], "text")
        added = of.op.slice(rows, first, [1, *new[1:]], "new_rows")
        texts.append(write_rows(of, old, added, axis, of.op.slice(start, [text], [1], "position")))
    return of.emit("CONCATENATION", *texts, axis=0, name="texts")


def extended(of: Operation, x: ir.Value, size: int, axis: int, number: float = 0) -> ir.Value:
    """Make an axis longer.

    Args:
        of: The node that is raised.
        x: Any tensor.
        size: The new length, not less than the old one.
        axis: The axis.
        number: The number behind the old ones.

    Returns:
        The longer tensor; `x` itself if it has that length.
    """
    shape = list(shape_of(x))
    missing = size - shape[axis]
    if not missing:
        return x
    shape[axis] = missing
    assert x.dtype is not None
    if shape_of(x)[axis] == 0:
        return of.constant(np.full(shape, number), "empty_rows", x.dtype.numpy())
    padding = of.constant(np.full(shape, number), "empty_rows", x.dtype.numpy())
    return of.emit("CONCATENATION", x, padding, axis=axis, name="extended")


def appended(of: Operation, past: ir.Value | None, new: ir.Value, axis: int) -> ir.Value:
    """Put new rows behind a past.

    Args:
        of: The node that is raised.
        past: The past; None or of no rows for none.
        new: The new rows.
        axis: The axis of the positions.

    Returns:
        Both; `new` itself without a past.
    """
    if past is None or shape_of(past)[axis] == 0:
        return new
    return of.emit("CONCATENATION", past, new, axis=axis, name="present")


def first_position(of: Operation, length: ir.Value, tokens: int) -> tuple[ir.Value, bool]:
    """Compute the position of the first of the last tokens: the length minus their number.

    Args:
        of: The node that is raised.
        length: The number of tokens of each text with the new ones, int32 [B] or of one element.
        tokens: The number of new tokens.

    Returns:
        The position, int32, in the shape of `length`, and whether it was the operand of an addition that the
        subtraction takes back. Such a position is not negative.
    """
    if not tokens:
        return length, True
    node = producer_of(length, "ADD")
    operands = list(node.inputs) if node is not None else []
    for number, other in zip(map(constant_array, operands), operands[::-1], strict=True):
        if number is not None and other is not None and number.size == 1 and number.reshape(-1)[0] == tokens:
            return of.reshape(other, shape_of(length)), True
    return of.emit("SUB", length, of.indices(tokens, "tokens"), name="position"), False


def _tensor_scatter(of: Operation) -> ir.Value:
    """TensorScatter: rows of `update` in `past_cache`, from `write_indices` on."""
    cache, update = of.operand(0), of.operand(1)
    axis = of.axis(of.get("axis", -2), len(shape_of(cache)))
    start = of.cast(of.operand(2), INT32) if of.has(2) else 0
    S, T = shape_of(cache)[axis], shape_of(update)[axis]
    if of.get("mode", "linear") == "circular" and not isinstance(start, int):
        size = of.indices([S], "size")
        start = of.emit("FLOOR_MOD", start, size, name="first")
        if T > 1 and axis == 0:
            of.refuse("it wraps around on the axis of the texts")
        if T > 1:
            return _scatter_around(of, cache, update, start, axis)
    return write_at(of, cache, update, start, axis)


def _scatter_around(of: Operation, cache: ir.Value, rows: ir.Value, start: ir.Value, axis: int) -> ir.Value:
    """Rows that may go on at the beginning of a cache: written into twice the cache. Its halves are merged.

    Row s of the result is row s of the second half where s + S < start + T, else row s of the first half.
    """
    shape, T = shape_of(cache), shape_of(rows)[axis]
    S, B = shape[axis], shape[0]
    doubled = of.emit("CONCATENATION", cache, cache, axis=axis, name="twice")
    written = write_at(of, doubled, rows, start, axis)
    halves = [of.op.slice(written, _on(axis, S * half, len(shape)), shape, "half") for half in (0, 1)]
    behind = of.emit("ADD", start, of.indices([T - S], "wrap"), name="wrapped")
    place: Sequence[int] = [S if each == axis else 1 for each in range(len(shape))]
    number = of.constant(np.arange(S, dtype=np.int32).reshape(place), "rows", np.int32)
    limit = of.reshape(behind, [B, *[1] * (len(shape) - 1)])
    is_second = of.emit("LESS", number, limit, dtype=ir.DataType.BOOL, name="is_wrapped")
    return of.emit("SELECT_V2", is_second, halves[1], halves[0], dtype=cache.dtype, name="merged")


def _on(axis: int, index: int, rank: int) -> list[int]:
    return [index if each == axis else 0 for each in range(rank)]


RULES: Rules = {"TensorScatter": _tensor_scatter}
"""Rules of ONNX's own domain."""
