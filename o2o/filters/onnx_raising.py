"""Base class of the filters that raise ONNX to Circle: what `--check` expects of the result."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from o2o.filters.base import Filter
from o2o.formats.widened_tensor import OTHER_FLOATS
from o2o.model import Model, is_dynamic
from o2o.raising import raise_model
from o2o.raising.models import is_input

if TYPE_CHECKING:
    from o2o.check.interface import Expected, ExpectedSignature, ExpectedTensor, Tensors

TOLERANCES = {ir.DataType.FLOAT16: 0.01, ir.DataType.BFLOAT16: 0.08}
"""For `--check` of a model of 16-bit floats. ONNX Runtime rounds each result to 11 or 8 bits."""


class OnnxRaising(Filter):
    """A filter that takes ONNX too, and raises it to Circle."""

    def __init__(self) -> None:
        super().__init__()
        self.is_widened = False
        self.rounded: set[ir.DataType] = set()
        """The 16-bit floats of the original."""

    def as_circle(self, model: Model, in_float32: bool = True) -> Model:
        """Raise a model if it is ONNX.

        Args:
            model: A model of any format.
            in_float32: Whether float16, bfloat16 and float64 become float32.

        Returns:
            The Circle model of an ONNX model; any other model itself.

        Raises:
            ModelError: An operator has no counterpart, or a dimension is symbolic.
        """
        if model.format != "onnx":
            return model
        raised = raise_model(model, in_float32)
        self.is_widened = in_float32
        results = (value for graph in model.graphs for node in graph for value in node.outputs)
        values = [*results, *(value for graph in model.graphs for value in graph.inputs)]
        self.rounded = {value.dtype for value in values if value.dtype is not None} & set(TOLERANCES)
        return raised

    def expected(self, models: Sequence[Model], args: argparse.Namespace) -> Expected:
        """See `Filter.expected`. Inputs with defaults become constants, and open shapes are inferred."""
        from o2o.check.interface import signature_of, with_inputs, with_outputs

        expected = super().expected(models, args)
        if models[0].format != "onnx":
            return expected

        def widened(value: ir.Value, tensor: ExpectedTensor) -> ExpectedTensor:
            is_other = self.is_widened and value.dtype in OTHER_FLOATS
            return replace(tensor, dtype=np.dtype(np.float32)) if is_other else tensor

        def inputs(entry: ExpectedSignature) -> Tensors:
            values = signature_of(models, entry).inputs
            return {
                name: widened(values[name], tensor)
                for name, tensor in entry.inputs.items()
                if is_input(values[name])
            }

        def outputs(entry: ExpectedSignature) -> Tensors:
            values = signature_of(models, entry).outputs
            return {
                name: replace(widened(values[name], tensor), is_reshaped=is_dynamic(values[name]))
                for name, tensor in entry.outputs.items()
            }

        return with_outputs(with_inputs(expected, inputs), outputs)

    def tolerance(self, args: argparse.Namespace) -> float:
        """See `Filter.tolerance`."""
        return max([super().tolerance(args), *(TOLERANCES[dtype] for dtype in self.rounded)])
