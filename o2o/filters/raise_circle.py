"""`raise.circle.py`."""

from __future__ import annotations

import argparse

from o2o.filters.base import Filter
from o2o.formats.dialects import convert
from o2o.model import Model


class RaiseCircle(Filter):
    """Turn TFLite into Circle, where nothing is lost.

        model.tflite: FULLY_CONNECTED -- SOFTMAX      =>      model.circle: FULLY_CONNECTED -- SOFTMAX

    The operators stay what they are; fuse.attention.py and its kind raise them to those that only Circle has.
    A model that is Circle already passes as it is.
    Refused: operators, options and tensor types that Circle lacks, named with their place.
    """

    name = "raise.circle.py"
    usage_example = "raise.circle.py < model.tflite | fuse.rms_norm.py > model.circle"

    def apply(self, model: Model, args: argparse.Namespace) -> bool:
        if model.format == "circle":
            self.log("the model is Circle already and passes unchanged")
            return False
        convert(model, "circle")
        return True


main = RaiseCircle.main
