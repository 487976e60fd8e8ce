"""Masks and biases of scores as one additive operand [1, N or 1, T or 1, S or 1]."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import constant_array
from o2o.model import shape_of
from o2o.operators.masks import HIDDEN_SCORE
from o2o.rewriting.attention.layouts import LabeledValue, in_layout
from o2o.rewriting.attention.mask_axes import own_axes, repeats_rows
from o2o.rewriting.attention.sdpa import LabeledTerm, Sdpa
from o2o.rewriting.axes import Axes, Factors
from o2o.rewriting.builder import Builder


class MaskOperands:
    """The masks of one graph. Layers with the same masks share one operand."""

    def __init__(self) -> None:
        self._built: dict[tuple[Any, ...], ir.Value] = {}

    def build(self, op: Builder, sdpa: Sdpa) -> ir.Value | None:
        """Build the mask operand of an attention.

        Args:
            op: Inserts operators in front of all nodes that use the operand.
            sdpa: The attention.

        Returns:
            The sum of its masks and biases, or None if there are none.
        """
        if not sdpa.terms:
            return None
        steps = ((term.kind, term.value, term.factor, axes) for term, axes in sdpa.terms)
        key = (*steps, *sdpa.factors.sizes.values())
        if key not in self._built:
            terms = [_additive(op, sdpa.factors, labeled) for labeled in sdpa.terms]
            total = terms[0]
            for term in terms[1:]:
                shape = np.broadcast_shapes(shape_of(total), shape_of(term))
                total = op.node("ADD", [total, term], shape, name="masks")
            self._built[key] = total
        return self._built[key]


def _additive(op: Builder, factors: Factors, labeled: LabeledTerm) -> ir.Value:
    term = labeled.term
    value = _canonical(op, factors, term.value, labeled.axes)
    if term.kind == "add":
        if term.factor == 1:
            return value
        factor = op.constant(term.factor, "mask_scale", np.float32)
        return op.node("MUL", [value, factor], shape_of(value), name="scaled_mask")
    zero, hidden = (
        op.constant(number, name, np.float32) for number, name in ((0, "shown"), (HIDDEN_SCORE, "hidden"))
    )
    choice = [hidden, zero] if term.kind == "hide" else [zero, hidden]
    return op.node("SELECT_V2", [value, *choice], shape_of(value), dtype=ir.DataType.FLOAT, name="mask")


def _canonical(op: Builder, factors: Factors, value: ir.Value, axes: Axes) -> ir.Value:
    """`value`, broadcast to scores with these axes, as [1, N or 1, T or 1, S or 1]."""
    axes = own_axes(factors, value, axes)
    if repeats_rows(factors, value, axes):
        value = _first_rows(op, value, factors.sizes["T"])
        axes = (*axes[:-2], *factors.axes("T"), axes[-1])
    own = [name for axis in axes for name in axis]
    heads, tokens, keys = (tuple(name for name in names if name in own) for names in ("KG", "T", "S"))
    wanted: Axes = ((), heads, tokens, keys)
    shape = shape_of(value)
    padded = (1,) * (4 - len(shape)) + shape
    if own != [*heads, *tokens, *keys] or padded != factors.shape(wanted):
        value = in_layout(op, factors, LabeledValue(value, axes), wanted, "mask")
    if heads and heads != factors.axes("KG")[0]:
        value = _for_all_heads(op, factors, value, heads)
    return value


def _first_rows(op: Builder, value: ir.Value, rows: int) -> ir.Value:
    columns = shape_of(value)[-1]
    if (array := constant_array(value)) is not None:
        return op.constant(array.reshape(-1, columns)[:rows].reshape(1, 1, rows, columns), "mask")
    count = math.prod(shape_of(value)) // columns
    return op.slice(op.reshape(value, [1, 1, count, columns]), [0] * 4, [1, 1, rows, columns], name="mask")


def _for_all_heads(op: Builder, factors: Factors, value: ir.Value, heads: tuple[str, ...]) -> ir.Value:
    """`value` [1, K or G, T or 1, S or 1] for all N heads."""
    _, _, rows, columns = (1,) * (4 - len(shape_of(value))) + shape_of(value)
    K, G = factors.sizes["K"], factors.sizes["G"]
    apart = [1, K if "K" in heads else 1, G if "G" in heads else 1, rows, columns]
    wide = [1, K, G, rows, columns]
    to = op.constant(np.asarray(wide, np.int32), "mask_shape")
    value = op.node("BROADCAST_TO", [op.reshape(value, apart), to], wide, name="mask_of_heads")
    return op.reshape(value, [1, K * G, rows, columns], name="mask_of_heads")
