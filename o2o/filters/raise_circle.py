"""`raise.circle.py`."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from typing import Any

from o2o.cli.text import counted
from o2o.filters.base import ALL_FORMATS
from o2o.filters.onnx_raising import OnnxRaising
from o2o.formats.dialects import convert
from o2o.model import Model


class RaiseCircle(OnnxRaising):
    """Convert TFLite or ONNX to Circle.

        model.tflite: FULLY_CONNECTED -- SOFTMAX      =>      model.circle: FULLY_CONNECTED -- SOFTMAX

        model.onnx:   MatMul -- Add -- Softmax        =>      model.circle: FULLY_CONNECTED -- ADD -- SOFTMAX

    TFLite: operators stay the same, without loss. ONNX: each operator becomes one or several operators of
    Circle; shapes must be fixed (fix.shape.py). Weights are not read.
    float16, bfloat16 and float64 become float32, also of inputs and outputs: engines have few operators of
    these. With --keep_float16 all three stay.
    Signatures, contract and history come along. Filters such as fuse.attention.py then replace groups of
    operators by operators of Circle. A Circle model passes unchanged.
    Refused: operators, options and tensor types that Circle lacks; the message names each and its place.
    """

    name = "raise.circle.py"
    purpose = "Convert to another format or runtime"
    usage_example = "raise.circle.py < model.onnx | fuse.rms_norm.py > model.circle"
    input_formats = ALL_FORMATS

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--keep_float16",
            action="store_true",
            help="of ONNX: keep float16, bfloat16 and float64",
        )

    def transform(
        self, models: Sequence[Model], args: argparse.Namespace, entry: dict[str, Any] | None
    ) -> Model:
        (model,) = models
        if model.format != "onnx":
            return super().transform(models, args, entry)
        before = sum(len(graph) for graph in model.graphs)
        raised = self.as_circle(model, in_float32=not args.keep_float16)
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


main = RaiseCircle.main
