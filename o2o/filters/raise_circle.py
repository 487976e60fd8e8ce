"""`raise.circle.py`."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from o2o.cli.text import counted
from o2o.filters.base import ALL_FORMATS, Filter
from o2o.formats.dialects import convert
from o2o.model import Model, is_dynamic
from o2o.raising import raise_model
from o2o.raising.models import is_input

if TYPE_CHECKING:
    from o2o.check.interface import Expected, ExpectedSignature, Tensors


class RaiseCircle(Filter):
    """Convert TFLite or ONNX to Circle.

        model.tflite: FULLY_CONNECTED -- SOFTMAX      =>      model.circle: FULLY_CONNECTED -- SOFTMAX

        model.onnx:   MatMul -- Add -- Softmax        =>      model.circle: FULLY_CONNECTED -- ADD -- SOFTMAX

    TFLite: operators stay the same, without loss. ONNX: each operator becomes one or several operators of
    Circle; shapes must be fixed (fix.shape.py). Dtypes of inputs and outputs stay. Weights are not read.
    Signatures, contract and history come along. Filters such as fuse.attention.py then replace groups of
    operators by operators of Circle. A Circle model passes unchanged.
    Refused: operators, options and tensor types that Circle lacks; the message names each and its place.
    """

    name = "raise.circle.py"
    purpose = "Convert to another format or runtime"
    usage_example = "raise.circle.py < model.onnx | fuse.rms_norm.py > model.circle"
    input_formats = ALL_FORMATS

    def transform(
        self, models: Sequence[Model], args: argparse.Namespace, entry: dict[str, Any] | None
    ) -> Model:
        (model,) = models
        if model.format != "onnx":
            return super().transform(models, args, entry)
        before = sum(len(graph) for graph in model.graphs)
        raised = raise_model(model)
        if entry is not None:
            raised.history.append(entry)
        operators = Counter(node.op_type for graph in raised.graphs for node in graph)
        self.log(f"{counted(before, 'ONNX operator')} became {counted(sum(operators.values()), 'operator')}")
        return raised

    def apply(self, model: Model, args: argparse.Namespace) -> bool:
        if model.format == "circle":
            self.log("the model is Circle already and passes unchanged")
            return False
        convert(model, "circle")
        return True

    def expected(self, models: Sequence[Model], args: argparse.Namespace) -> Expected:
        return raised_interface(models, super().expected(models, args))


def raised_interface(models: Sequence[Model], expected: Expected) -> Expected:
    """Expect what raising changes in the interface of an ONNX model, for `--check`.

    Args:
        models: The originals.
        expected: What is expected apart from this.

    Returns:
        The interface without inputs that have defaults, which become constants. Outputs whose shapes the ONNX
        model leaves open have the shapes that follow from the inputs.
    """
    from o2o.check.interface import signature_of, with_inputs, with_outputs

    if models[0].format != "onnx":
        return expected

    def remaining(entry: ExpectedSignature) -> Tensors:
        values = signature_of(models, entry).inputs
        return {name: tensor for name, tensor in entry.inputs.items() if is_input(values[name])}

    def inferred(entry: ExpectedSignature) -> Tensors:
        values = signature_of(models, entry).outputs
        return {
            name: replace(tensor, is_reshaped=is_dynamic(values[name]))
            for name, tensor in entry.outputs.items()
        }

    return with_outputs(with_inputs(expected, remaining), inferred)


main = RaiseCircle.main
