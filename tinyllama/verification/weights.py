"""The weights in a file: are they the checkpoint's, as far as their bits go?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import is_constant, is_quantized
from o2o.model import Model, quantization_constants, shape_of
from o2o.quantization.compare import dequantized, scales
from o2o.rewriting.stacked_weights import Shapes, parts
from o2o.weights.stored_tensor import StoredTensor

INT4 = ir.DataType.INT4
HALF = 2.0**-10  # of a number: the step to the next one in float16


@dataclass(frozen=True)
class Weight:
    """A parameter in the file and in the checkpoint: how far they are apart at most, and how far they may be
    for the number of bits; of the place where that is exceeded most."""

    name: str
    off: float
    step: float

    @property
    def right(self) -> bool:
        return self.off <= self.step


def weights_in(model: Model, parameters: Shapes) -> dict[str, ir.Value]:
    """The constant of each of `parameters`, given their shapes, that is in `model` under its name, as export
    names them, by itself or joined to others."""
    return {
        name: part
        for graph in model.graphs
        for value in graph.initializers.values()
        if is_constant(value)
        for name, part in parts(value, parameters).items()
        if name in parameters
    }


def compared(found: Mapping[str, ir.Value], stored: Mapping[str, StoredTensor]) -> list[Weight]:
    """Each constant against the checkpoint's tensor. Float32 must be equal, others within one step of what
    they can say: between two halves, or the scale of an integer; the least and the largest of 4 bits within
    two, as those beyond are cut off."""
    return [_compared(name, value, stored[name].read_float32()) for name, value in found.items()]


def _compared(name: str, value: ir.Value, expected: np.ndarray) -> Weight:
    if shape_of(value) != expected.shape:
        return Weight(name, np.inf, 0.0)
    off = np.abs(dequantized(value) - expected)
    step = np.broadcast_to(_steps(value, expected), off.shape)
    worst = np.unravel_index(np.argmax(off - step), off.shape)
    return Weight(name, float(off[worst]), float(step[worst]))


def _steps(value: ir.Value, expected: np.ndarray) -> np.ndarray:
    """How far each number may be off, in a shape that fits `expected`."""
    if not is_quantized(value):
        return np.zeros(1) if value.dtype == ir.DataType.FLOAT else np.abs(expected) * HALF + 2.0**-24
    steps = scales(value)
    if value.dtype != INT4 or "scales" not in quantization_constants(value):
        return steps
    assert value.const_value is not None
    stored = value.const_value.numpy().astype(np.int8)
    return np.where((stored == -8) | (stored == 7), 2 * steps, steps)
