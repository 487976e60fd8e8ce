"""Masks of a static decoder: those that were inputs, and those that a growing graph goes without."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from o2o.model import attribute, dims_of
from o2o.rewriting.onnx_builder import OnnxBuilder
from o2o.rewriting.static_caches.interface import Interface
from o2o.rewriting.static_caches.past_numbers import PastNumbers
from o2o.rewriting.static_caches.position_numbers import PositionNumbers

_PRODUCTS = ("MatMul", "Gemm", "Einsum", "Attention", "GroupQueryAttention", "MultiHeadAttention")
_COMPARISONS = ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal")


def compute_masks(interface: Interface, positions: PositionNumbers) -> None:
    """Compute the masks that were inputs.

    Args:
        interface: The inputs.
        positions: Builds what follows from the position.
    """
    op, t, s = positions.op, positions.sizes.tokens, positions.sizes.capacity
    for value in interface.inputs("mask"):
        assert value.dtype is not None
        is_matrix = len(dims_of(value) or ()) == 4
        mask = positions.visible(op, is_causal=is_matrix)
        if is_matrix:
            mask = op.reshape(mask, [1, 1, t, s], "mask")
        else:
            row = op.constant(np.asarray([0], np.int64), "row")
            mask = op.node("Gather", [mask, row], [1, s], name="mask", axis=0)
        if value.dtype.is_floating_point() and is_matrix:
            mask = _additive(op, mask, value.dtype)
        elif value.dtype != ir.DataType.BOOL:
            mask = op.cast(mask, value.dtype, "mask_cast")
        value.replace_all_uses_with(mask)


def _additive(op: OnnxBuilder, mask: ir.Value, dtype: ir.DataType) -> ir.Value:
    visible = op.constant(np.zeros((), dtype.numpy()), "visible")
    hidden = op.constant(np.full((), -np.inf, dtype.numpy()), "hidden")
    return op.node("Where", [mask, visible, hidden], list(dims_of(mask) or ()), dtype, name="mask")


def mask_with_past(
    op: OnnxBuilder, mask: np.ndarray, positions: PositionNumbers, dims: Sequence[int]
) -> ir.Value | None:
    """Build the causal mask of all keys from that of a run without a past.

    Args:
        op: Builds the result.
        mask: Numbers that are added to scores [..., T, T], without a past.
        positions: Builds what follows from the position.
        dims: The shape of the result, [..., T, S].

    Returns:
        The mask; None if `mask` is not causal.
    """
    t, s = positions.sizes.tokens, positions.sizes.capacity
    if mask.shape[-2:] != (t, t) or mask.dtype.kind != "f" or tuple(dims[-2:]) != (t, s):
        return None
    hidden = mask[..., 0, -1].min()
    if not np.array_equal(mask, np.broadcast_to(np.triu(np.full((t, t), hidden), 1), mask.shape)):
        return None
    visible = op.reshape(positions.visible(op, is_causal=True), [1] * (mask.ndim - 2) + [t, s], "mask")
    numbers = [op.constant(np.asarray(number, mask.dtype), "added") for number in (0, hidden)]
    return op.node("Where", [visible, *numbers], list(dims), numbers[0].dtype, name="mask")


def combined(op: OnnxBuilder, mask: ir.Value, given: ir.Value | None, shape: Sequence[int | str]) -> ir.Value:
    """Hide keys in a mask of the model.

    Args:
        op: Builds the result.
        mask: The keys that queries see, bool [T, S].
        given: A mask of the model: bool, or numbers that are added to scores. None: there is none.
        shape: The shape of `given`.

    Returns:
        A mask like `given`, which hides what `mask` hides.
    """
    if given is None:
        return mask
    if given.dtype == ir.DataType.BOOL:
        return op.node("And", [given, mask], shape, name="mask")
    assert given.dtype is not None
    hidden = op.constant(np.full((), -np.inf, given.dtype.numpy()), "hidden")
    return op.node("Where", [mask, given, hidden], shape, given.dtype, name="mask")


def hide_unmasked(graph: ir.Graph, numbers: PastNumbers, positions: PositionNumbers) -> None:
    """Hide rows behind the position from each Softmax whose scores no mask is applied to.

    A growing graph of one token needs no mask: all keys that exist are visible. A mask shows in the path from
    a comparison with the position to the Softmax, which leads through no product.

    Args:
        graph: The graph.
        numbers: What follows from the past.
        positions: Builds what follows from the position.
    """
    masked = _masked_values(graph, positions.position)
    for node in list(graph):
        scores = node.inputs[0] if node.inputs else None
        if node.domain != "" or node.op_type != "Softmax" or scores is None or scores in masked:
            continue
        shape = list(dims_of(scores) or ())
        axis = attribute(node, "axis", -1) % max(len(shape), 1)
        if axis != len(shape) - 1 or axis not in numbers.growing_axes(node.outputs[0]):
            continue
        op = OnnxBuilder(graph, before=node, prefix=f"{node.outputs[0].name}_")
        visible = positions.visible(op, is_causal=False)
        node.replace_input_with(0, combined(op, visible, scores, shape))


def _masked_values(graph: ir.Graph, position: ir.Value) -> set[ir.Value]:
    """Values that depend on a comparison with the position, by a path without products."""
    masked: set[ir.Value] = set()
    dependent = {position}
    for node in graph:
        if node.op_type in _PRODUCTS or node.op_type == "TensorScatter":
            continue
        operands = {value for value in node.inputs if value is not None}
        if operands & dependent:
            dependent |= set(node.outputs)
            if node.op_type in _COMPARISONS:
                masked |= set(node.outputs)
        if operands & masked:
            masked |= set(node.outputs)
    return masked
