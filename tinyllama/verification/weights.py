"""A file's weights against the checkpoint's, within the precision of their dtype."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import is_constant, is_quantized
from o2o.model import Model, quantization_constants, shape_of
from o2o.quantization.compare import dequantized, scales
from o2o.rewriting.stacked_weights import Shapes, unstack
from o2o.weights.weight_source import WeightSource

INT4 = ir.DataType.INT4
HALF = 2.0**-10  # relative distance of neighboring float16 numbers


@dataclass(frozen=True)
class WeightComparison:
    """A parameter of the file against the checkpoint, at the element that exceeds its limit most.

    Attributes:
        name: The parameter's name.
        off: The absolute difference.
        step: The largest difference that the dtype allows.
    """

    name: str
    off: float
    step: float

    @property
    def right(self) -> bool:
        return self.off <= self.step


def weights_in(model: Model, parameters: Shapes) -> dict[str, ir.Value]:
    """Find the constants of parameters by name, whether single or stacked with others.

    Args:
        model: The file's graphs.
        parameters: {name: shape} of the checkpoint's parameters.

    Returns:
        {parameter name: constant}.
    """
    return {
        name: part
        for graph in model.graphs
        for value in graph.initializers.values()
        if is_constant(value)
        for name, part in unstack(value, parameters).items()
        if name in parameters
    }


def compare_weights(
    constants: Mapping[str, ir.Value], stored: Mapping[str, WeightSource]
) -> list[WeightComparison]:
    """Compare constants with the checkpoint's tensors.

    Float32 must be equal. Other dtypes may differ by one step: the distance of float16 numbers, or an
    integer's scale. The extremes of 4-bit integers may differ by two, since larger weights are clipped.

    Args:
        constants: {parameter name: constant}.
        stored: {parameter name: stored tensor}.

    Returns:
        One comparison for each constant.
    """
    return [_compare(name, value, stored[name].read_float32()) for name, value in constants.items()]


def _compare(name: str, value: ir.Value, expected: np.ndarray) -> WeightComparison:
    if shape_of(value) != expected.shape:
        return WeightComparison(name, np.inf, 0.0)
    off = np.abs(dequantized(value) - expected)
    step = np.broadcast_to(_steps(value, expected), off.shape)
    worst = np.unravel_index(np.argmax(off - step), off.shape)
    return WeightComparison(name, float(off[worst]), float(step[worst]))


def _steps(value: ir.Value, expected: np.ndarray) -> np.ndarray:
    """The allowed difference of each element, in a shape that broadcasts to `expected`."""
    if not is_quantized(value):
        return np.zeros(1) if value.dtype == ir.DataType.FLOAT else np.abs(expected) * HALF + 2.0**-24
    steps = scales(value)
    if value.dtype != INT4 or "scales" not in quantization_constants(value):
        return steps
    assert value.const_value is not None
    stored = value.const_value.numpy().astype(np.int8)
    return np.where((stored == -8) | (stored == 7), 2 * steps, steps)
