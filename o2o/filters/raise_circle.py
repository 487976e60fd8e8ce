"""`raise.circle.py`."""

from __future__ import annotations

import argparse

from o2o.filters.base import Filter
from o2o.formats.dialects import convert
from o2o.model import Model


class RaiseCircle(Filter):
    """Convert TFLite to Circle, without loss.

        model.tflite: FULLY_CONNECTED -- SOFTMAX      =>      model.circle: FULLY_CONNECTED -- SOFTMAX

    Operators stay the same; filters such as fuse.attention.py then replace them by operators of Circle.
    A Circle model passes unchanged.
    Refused: operators, options and tensor types that Circle lacks; the message names each and its place.
    """

    name = "raise.circle.py"
    purpose = "Convert to another format or runtime"
    usage_example = "raise.circle.py < model.tflite | fuse.rms_norm.py > model.circle"

    def apply(self, model: Model, args: argparse.Namespace) -> bool:
        if model.format == "circle":
            self.log("the model is Circle already and passes unchanged")
            return False
        convert(model, "circle")
        return True


main = RaiseCircle.main
