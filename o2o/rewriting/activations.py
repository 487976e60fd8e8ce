"""Activation functions that exporters decompose: SiLU, and GELU by tanh, by erf and by the logistic function.

A chain of elementwise operators is evaluated at points between -8 and 8. If its results equal the results of
an activation, it is that activation, in whichever order its operators are written.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import is_constant
from o2o.model import shape_of
from o2o.operators.reference import NotEvaluable, evaluate
from o2o.operators.traits import RESHAPE_OPS, is_elementwise
from o2o.rewriting.matchers import scalar
from o2o.rewriting.regions import Region, Regions

TOLERANCE = 2e-6
"""Largest difference of a point, relative to max(1, |x|): the rounding of a few float32 operations."""
_POINTS = np.linspace(-8, 8, 257)
_RATIONAL_OPS = ("ADD", "SUB", "MUL", "DIV", "NEG", *RESHAPE_OPS)
"""Operators that compute rational functions. No activation is one."""


@dataclass(frozen=True)
class Activation:
    """An activation of `x`.

    Attributes:
        x: Its operand.
        kind: A key of `FUNCTIONS`.
    """

    x: ir.Value
    kind: str


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "silu": lambda x: x * _sigmoid(x),
    "quick_gelu": lambda x: x * _sigmoid(1.702 * x),
    "gelu_tanh": _gelu_tanh,
    "gelu": lambda x: np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x]),
}
_VALUES = {kind: function(_POINTS) for kind, function in FUNCTIONS.items()}


def activation_of(regions: Regions, node: ir.Node) -> Activation | None:
    """Return the activation that ends with a node.

    Args:
        regions: The regions of its graph.
        node: The last operator.

    Returns:
        The activation, or None.
    """
    if node.op_type != "MUL" or len(node.outputs) != 1:
        return None
    for region in regions.before(node.outputs[0], _is_scalar_function):
        if math.prod(shape_of(region.source)) != math.prod(shape_of(region.result)):
            return None
        kind = _kind(region)
        if kind is not None:
            return Activation(region.source, kind)
    return None


def _is_scalar_function(node: ir.Node) -> bool:
    """Whether a node computes each element from one element of its operand, and from scalars."""
    if not is_elementwise(node) and node.op_type not in RESHAPE_OPS:
        return False
    constants = [value for value in node.inputs if value is not None and is_constant(value)]
    if node.op_type in RESHAPE_OPS:
        return True
    return all(scalar(value) is not None for value in constants)


def _kind(region: Region) -> str | None:
    dtype = region.source.dtype
    if dtype is None or dtype.numpy() != np.float32:
        return None
    if all(node.op_type in _RATIONAL_OPS for node in region.nodes):
        return None
    # Only a reshape depends on the shape, so other regions are evaluated at no more points than needed.
    is_reshaped = any(node.op_type in RESHAPE_OPS for node in region.nodes)
    shape = shape_of(region.source) if is_reshaped else _POINTS.shape
    count = math.prod(shape)
    values = []
    try:
        for start in range(0, len(_POINTS), count):
            part = np.resize(_POINTS[start:], count).astype(np.float32)
            values.append(evaluate(region.result, {region.source: part.reshape(shape)}).reshape(-1))
    except NotEvaluable:
        return None
    actual = np.concatenate(values)[: len(_POINTS)]
    bound = TOLERANCE * np.maximum(1, np.abs(_POINTS))
    return next((kind for kind, want in _VALUES.items() if np.all(np.abs(actual - want) <= bound)), None)
