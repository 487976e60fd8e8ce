"""A growing graph at one length of its past: the numbers and the shapes that follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from o2o.formats.onnx_writer import decoded_header
from o2o.model import Model
from o2o.operators.onnx_shape_inference import forget_wrong_shapes, infer_shapes
from o2o.rewriting.builder import add_constant
from o2o.rewriting.fix_dimensions import fix_values
from o2o.rewriting.onnx_folding import fold_constants

ROUNDS = 30
"""Rounds of shape inference and folding, which each may make more shapes known."""


@dataclass
class Instance:
    """What is known of a graph for one length of its past.

    Attributes:
        past: P, the length.
        numbers: Values that depend on constants and shapes alone, by name.
        shapes: Shapes by the names of values.
    """

    past: int
    numbers: dict[str, np.ndarray] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)


def instance(model: Model, past: int, sizes: Mapping[str, int], inputs: Mapping[str, np.ndarray]) -> Instance:
    """Compute what follows from one length of the past.

    Args:
        model: A growing model. It is not changed.
        past: P, the length.
        sizes: The numbers of all symbolic dimensions for this length, by name.
        inputs: The inputs that follow from this length, by name.

    Returns:
        The numbers and the shapes.
    """
    copy = decoded_header(model, lambda proto: proto)
    fix_values(copy, sizes)
    forget_wrong_shapes(copy)
    result = Instance(past, dict(inputs))
    for value in copy.graphs[0].inputs:
        if (array := inputs.get(value.name or "")) is not None:
            value.replace_all_uses_with(add_constant(copy.graphs[0], array, f"{value.name}_number"))
    for _ in range(ROUNDS):
        infer_shapes(copy)
        for value in (value for node in copy.graphs[0] for value in node.outputs):
            _record_shape(result, value)
        if not fold_constants(copy, result.numbers):
            break
    for value in copy.graphs[0].inputs:
        _record_shape(result, value)
    result.shapes |= {name: array.shape for name, array in result.numbers.items()}
    return result


def _record_shape(result: Instance, value: ir.Value) -> None:
    if value.name and value.shape is not None and value.shape.is_static():
        result.shapes[value.name] = tuple(value.shape.numpy())
