"""How a file stores its weights, and so how far its logits may drift from those of the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import onnx_ir as ir

from o2o.model import Model
from tinyllama.verification.comparison import Step

MATRIX = 1024  # numbers from which a constant counts
UNRELATED = 1.0  # the noise of logits that say nothing of each other is this and more
TOLERANCE = 0.01  # of logits, where weights are float32
_NOISE = {  # the fewest bits of a weight that counts: (name, limit of a step's noise)
    16: ("float16", 0.01),
    8: ("int8", 0.2),
    4: ("int4", 0.6),
}
_BITS = {
    ir.DataType.FLOAT: 32,
    ir.DataType.FLOAT16: 16,
    ir.DataType.BFLOAT16: 16,
    ir.DataType.INT8: 8,
    ir.DataType.UINT8: 8,
    ir.DataType.INT4: 4,
    ir.DataType.UINT4: 4,
}


@dataclass(frozen=True)
class Precision:
    """What may be asked of a file whose weights are stored as `name`.

    Of float32 that logits are within `tolerance` of the reference's, and choices the same. Of fewer bits
    that the drift is small against what logits differ from each other: its root mean square at most `noise`
    of their standard deviation, in the median of the steps, and nowhere as much as if they had nothing to
    do with each other (see `Step.noise`); and that choices are the same, or the reference prefers its own to
    the other by no more than drift explains (`explained`). `tolerance` holds for these, too, where it is
    given.
    """

    name: str
    tolerance: float | None
    noise: float | None = None

    @classmethod
    def of(cls, model: Model, tolerance: float | None = None) -> Precision:
        """That of the coarsest of the matrices in `model`."""
        constants = (value.const_value for graph in model.graphs for value in graph.initializers.values())
        bits = min(
            (_BITS[constant.dtype] for constant in constants if constant is not None and _counts(constant)),
            default=32,
        )
        if bits == 32:
            return cls("float32", TOLERANCE if tolerance is None else tolerance)
        name, noise = _NOISE[bits]
        return cls(name, tolerance, noise)

    def holds(self, steps: Sequence[Step]) -> bool:
        """Whether the logits of `steps` are as close as they should be."""
        if self.tolerance is not None and not all(step.off <= self.tolerance for step in steps):
            return False
        noise = [step.noise for step in steps]
        return self.noise is None or (median(noise) <= self.noise and max(noise) < UNRELATED)

    def explained(self, steps: Sequence[Step], at: int) -> bool:
        """Whether the drift of all `steps` explains that choices part at step `at`: two candidates may change
        places when they are no further apart than the largest differences of two logits usually are."""
        return self.noise is not None and steps[at].gap <= 2 * median(step.off for step in steps)

    def told(self) -> str:
        """The criterion in words."""
        asked = [f"logits within {self.tolerance:g}"] if self.tolerance is not None else []
        asked += (
            [f"noise mostly up to {self.noise:g} of the logits' spread"] if self.noise is not None else []
        )
        return f"{self.name}: {', '.join(asked)}"


def _counts(constant: ir.TensorProtocol) -> bool:
    return constant.dtype in _BITS and len(constant.shape) > 1 and constant.size >= MATRIX
