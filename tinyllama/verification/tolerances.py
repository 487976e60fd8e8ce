"""How a file stores its weights and computes with them, and so what may be asked of its logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

import onnx_ir as ir

from o2o.model import Model
from tinyllama.verification.comparison import Step
from tinyllama.verification.quantized_reference import rounded_before

MATRIX = 1024  # numbers from which a constant counts
TOLERANCE = 0.01  # of logits, where all is computed in float32
ROUNDED = 0.2  # noise, where inputs of matrices are rounded: numbers fall to one side or the other
UNKNOWN = 0.6  # noise, where the file's weights are not known, so that theirs is in it, too
UNRELATED = 1.0  # the noise of logits that say nothing of each other is this and more
_STORED = {
    ir.DataType.FLOAT: (32, "float32"),
    ir.DataType.FLOAT16: (16, "float16"),
    ir.DataType.BFLOAT16: (16, "bfloat16"),
    ir.DataType.INT8: (8, "int8"),
    ir.DataType.UINT8: (8, "int8"),
    ir.DataType.INT4: (4, "int4"),
    ir.DataType.UINT4: (4, "int4"),
}


@dataclass(frozen=True)
class Precision:
    """What may be asked of a file whose coarsest weights are stored as `stored`, against PyTorch that has the
    same weights and rounds where the file does (`tinyllama.verification.quantized_reference`).

    tolerance: how far logits may be apart; None: not asked. noise: how large, in the median of the steps, the
    root mean square of their difference may be against their spread (see `Step.noise`); no step may be as if
    its logits had nothing to do with each other. None: not asked.
    """

    stored: str
    tolerance: float | None
    noise: float | None = None

    @classmethod
    def of(cls, model: Model, tolerance: float | None = None) -> Precision:
        """That of the matrices in `model`. `tolerance` instead of TOLERANCE, or beside a limit of noise."""
        constants = (value.const_value for graph in model.graphs for value in graph.initializers.values())
        stored = (_STORED[one.dtype] for one in constants if one is not None and _counts(one))
        name = min(stored, default=(32, "float32"))[1]
        if rounded_before(model):
            return cls(name, tolerance, ROUNDED)
        return cls(name, TOLERANCE if tolerance is None else tolerance)

    @property
    def exact(self) -> bool:
        """Whether the weights are the checkpoint's."""
        return self.stored == "float32"

    def unknown(self) -> Precision:
        """What may be asked against the checkpoint's weights instead."""
        return self if self.exact else replace(self, noise=UNKNOWN)

    def holds(self, steps: Sequence[Step]) -> bool:
        """Whether the logits of `steps` are as close as they should be."""
        if self.tolerance is not None and not all(step.off <= self.tolerance for step in steps):
            return False
        noise = [step.noise for step in steps]
        return self.noise is None or (median(noise) <= self.noise and max(noise) < UNRELATED)

    def explained(self, steps: Sequence[Step], at: int) -> bool:
        """Whether what quantising has done to the logits of all `steps` explains that choices part at step
        `at`: two candidates may change places when they are no further apart than twice the usual drift."""
        return not self.exact and steps[at].gap <= 2 * median(step.off for step in steps)

    def told(self) -> str:
        """What is asked, in words."""
        asked = [f"logits within {self.tolerance:g}"] if self.tolerance is not None else []
        asked += [f"noise mostly up to {self.noise:g} of their spread"] if self.noise is not None else []
        return ", ".join(asked)


def _counts(constant: ir.TensorProtocol) -> bool:
    return constant.dtype in _STORED and len(constant.shape) > 1 and constant.size >= MATRIX
