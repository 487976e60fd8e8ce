"""What each axis of keys and values means: labels followed from an attention back to the caches.

The labels are those of a layout: N heads, T tokens, H head dimension. An axis of one element has the label B
unless something else is known. An axis that mixes two labels has None.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from o2o.model import shape_of
from o2o.operators.traits import RESHAPE_OPS, is_elementwise
from o2o.rewriting.matchers import constant_ints

Labels = tuple[str | None, ...]

_SAME_AXES = ("CONCATENATION", "SLICE", "STRIDED_SLICE", "SPLIT", "SPLIT_V", "PAD", "PADV2", "QUANTIZE")
_MORE_SAME_AXES = ("DEQUANTIZE", "DYNAMIC_UPDATE_SLICE", "BROADCAST_TO", "TILE", "ROPE", "RMS_NORM")
SAME_AXES = (*_SAME_AXES, *_MORE_SAME_AXES)
"""Operators whose axes are those of operand 0, aligned at the last axis; sizes may differ."""


def before(node: ir.Node, operand: int, labels: Labels) -> Labels | None:
    """Return the labels of an operand.

    Args:
        node: An operator.
        operand: The number of one of its operands.
        labels: The labels of its result.

    Returns:
        The labels; None if the operator moves axes in another way.
    """
    value = node.inputs[operand]
    assert value is not None
    return _through(node, labels, shape_of(node.outputs[0]), shape_of(value), inverse=True)


def after(node: ir.Node, operand: int, labels: Labels) -> Labels | None:
    """Return the labels of a result.

    Args:
        node: An operator.
        operand: The number of one of its operands.
        labels: The labels of this operand.

    Returns:
        The labels; None if the operator moves axes in another way.
    """
    value = node.inputs[operand]
    assert value is not None
    return _through(node, labels, shape_of(value), shape_of(node.outputs[0]), inverse=False)


def _through(
    node: ir.Node, labels: Labels, shape: Sequence[int], other: Sequence[int], *, inverse: bool
) -> Labels | None:
    """Labels of the tensor on the other side of `node`, whose shape is `other`."""
    if node.op_type in RESHAPE_OPS:
        return regroup(labels, shape, other)
    if node.op_type == "TRANSPOSE":
        permutation = constant_ints(node.inputs[1])
        if permutation is None:
            return None
        order = [permutation.index(axis) for axis in range(len(permutation))] if inverse else permutation
        return tuple(labels[axis] for axis in order)
    if node.op_type in SAME_AXES or is_elementwise(node):
        extra = len(other) - len(labels)
        aligned = (None,) * extra + labels if extra > 0 else labels[-extra:] if extra else labels
        return tuple(
            label if label is not None or size != 1 else "B"
            for label, size in zip(aligned, other, strict=True)
        )
    return None


def regroup(labels: Labels, shape: Sequence[int], other: Sequence[int]) -> Labels | None:
    """Return the labels after a reshape.

    Args:
        labels: The labels before it.
        shape: The shape before it.
        other: The shape after it.

    Returns:
        The labels: an axis that is split gives its label to all parts.
    """
    axes = [index for index, size in enumerate(shape) if size != 1]
    result: list[str | None] = ["B"] * len(other)
    groups = [index for index, size in enumerate(other) if size != 1]
    if math.prod(shape) != math.prod(other):
        return None
    while axes and groups:
        left, right = [axes.pop(0)], [groups.pop(0)]
        while (a := math.prod(shape[i] for i in left)) != (b := math.prod(other[i] for i in right)):
            if a < b and axes:
                left.append(axes.pop(0))
            elif a > b and groups:
                right.append(groups.pop(0))
            else:
                return None
        known = {labels[index] for index in left}
        if len(left) == len(right) == 1 or len(known) == 1:
            for index in right:
                result[index] = known.copy().pop()
        else:
            for index in right:
                result[index] = None
    # An axis of one element keeps its label where the other axes show its place.
    for index, label in enumerate(labels):
        if shape[index] == 1 and label not in (None, "B") and len(shape) == len(other) and other[index] == 1:
            result[index] = label
    return tuple(result)


def layout_of(labels: Labels | None, shape: Sequence[int]) -> str | None:
    """Return the layout that labels give.

    Args:
        labels: The labels of the four axes of a cache or of its rows; None if they are unknown.
        shape: Its shape.

    Returns:
        A permutation of BNTH; None if the labels leave a choice.
    """
    if labels is None or len(labels) != 4:
        return None
    if labels.count("T") != 1 or labels.count("H") != 1:
        return None
    first, second = (axis for axis in range(4) if labels[axis] not in ("T", "H"))
    if shape[first] != 1:
        return None
    letters: list[str] = [label or "" for label in labels]
    letters[first], letters[second] = "B", "N"
    return "".join(letters)
