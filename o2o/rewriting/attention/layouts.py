"""Values with named axes, brought from one layout into another by RESHAPE and TRANSPOSE."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from o2o.rewriting.axes import Axes, Factors
from o2o.rewriting.builder import Builder


@dataclass(frozen=True)
class LabeledValue:
    """A value and its named axes."""

    value: ir.Value
    axes: Axes


def in_layout(op: Builder, factors: Factors, labeled: LabeledValue, axes: Axes, name: str) -> ir.Value:
    """Bring a value into a layout: a RESHAPE when its factors are in that order, else a TRANSPOSE too.

    Args:
        op: Inserts the operators.
        factors: The sizes of the named factors.
        labeled: The value and its axes.
        axes: The wanted axes, of the same factors.
        name: The name of the results.

    Returns:
        The value with these axes.
    """
    units = [axis for axis in axes if axis]
    current = [factor for axis in labeled.axes for factor in axis]
    if [factor for axis in units for factor in axis] == current:
        return op.reshape(labeled.value, factors.shape(axes), name=name)
    order = sorted(range(len(units)), key=lambda i: current.index(units[i][0]))
    if [factor for i in order for factor in units[i]] != current:  # a unit has to be split
        units = [(factor,) for axis in units for factor in axis]
        order = sorted(range(len(units)), key=lambda i: current.index(units[i][0]))
    x = op.reshape(labeled.value, [1, *factors.shape(tuple(units[i] for i in order))], name=name)
    x = op.transpose(x, [0, *(1 + order.index(i) for i in range(len(units)))], name=name)
    return op.reshape(x, factors.shape(axes), name=name)
