"""Named axes of masks: by which heads, tokens and keys a mask differs."""

from __future__ import annotations

import onnx_ir as ir

from o2o.formats.tensors import constant_array
from o2o.model import attribute, shape_of
from o2o.operators.traits import RESHAPE_OPS, is_elementwise
from o2o.rewriting.axes import Axes, Factors
from o2o.rewriting.matchers import fail


def own_axes(factors: Factors, value: ir.Value, axes: Axes) -> Axes:
    """Return the axes of a mask that is broadcast to scores.

    Args:
        factors: The sizes of the attention.
        value: The mask.
        axes: The axes of the scores.

    Returns:
        As many axes, without factors where the mask is broadcast.

    Raises:
        MatchFailure: The mask does not fit the scores.
    """
    shape = shape_of(value)
    shape = (1,) * (len(axes) - len(shape)) + shape
    if len(shape) != len(axes) or any(
        dim not in (1, size) for dim, size in zip(shape, factors.shape(axes), strict=True)
    ):
        fail("the mask does not have the axes of the scores", value)
    return tuple(axis if dim != 1 else () for dim, axis in zip(shape, axes, strict=True))


def repeats_rows(factors: Factors, value: ir.Value, axes: Axes) -> bool:
    """Whether a mask holds the rows of T tokens once for each of the G query heads of a group.

    Args:
        factors: The sizes of the attention.
        value: The mask.
        axes: Its axes (`own_axes`).

    Returns:
        True if its first T rows apply to each head.
    """
    is_folded = axes[-2:-1] == (factors.axes("GT")[0],) and "G" in axes[-2] and not any(axes[:-2])
    return is_folded and _is_periodic(value, factors.sizes["T"])


def _is_periodic(value: ir.Value, period: int) -> bool:
    """Whether row t + `period` of `value` [.., rows, columns] always equals row t."""
    shape = shape_of(value)
    if len(shape) < 2 or shape[-2] in (1, period):
        return True
    if (array := constant_array(value)) is not None:
        blocks = array.reshape(-1, shape[-2] // period, period, shape[-1])
        return bool((blocks == blocks[:, :1]).all())
    node = value.producer()
    if node is None:
        return False
    if node.op_type == "CONCATENATION" and attribute(node, "axis", 0) % len(shape) == len(shape) - 2:
        same = all(v is node.inputs[0] for v in node.inputs)
        return same and shape_of(node.inputs[0])[-2] == period  # type: ignore[arg-type]
    if node.op_type in RESHAPE_OPS:
        source = node.inputs[0]
        return source is not None and shape_of(source)[-2:] == shape[-2:] and _is_periodic(source, period)
    return is_elementwise(node) and all(v is not None and _is_periodic(v, period) for v in node.inputs)
