"""A file's weight dtype and rounding, and the limits that follow for its logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

import onnx_ir as ir

from o2o.model import Model
from tinyllama.verification.comparison import Step
from tinyllama.verification.quantized_reference import weights_with_rounded_inputs

MATRIX = 1024  # minimum number of elements of a constant that counts
TOLERANCE = 0.01  # limit of logits, if all arithmetic is float32
ROUNDED = 0.2  # noise limit if inputs of matrices are rounded: some numbers round the other way
UNKNOWN = 0.6  # noise limit if the file's weights cannot be read and add their own error
UNRELATED = 1.0  # noise of unrelated logits
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
    """The limits for a file's logits, against PyTorch with the same weights and the same rounding
    (`tinyllama.verification.quantized_reference`).

    Attributes:
        stored: The coarsest dtype of its matrices.
        tolerance: The largest allowed difference of logits; None for no such limit.
        noise: The largest allowed median of `Step.noise`; None for no such limit. No step may reach
            `UNRELATED`.
    """

    stored: str
    tolerance: float | None
    noise: float | None = None

    @classmethod
    def of(cls, model: Model, tolerance: float | None = None) -> Precision:
        """Derive the limits of a file.

        Args:
            model: The file's graphs.
            tolerance: Replaces `TOLERANCE`, or adds to a limit of noise.

        Returns:
            The limits.
        """
        constants = (value.const_value for graph in model.graphs for value in graph.initializers.values())
        stored = (_STORED[one.dtype] for one in constants if one is not None and _counts(one))
        name = min(stored, default=(32, "float32"))[1]
        if weights_with_rounded_inputs(model):
            return cls(name, tolerance, ROUNDED)
        return cls(name, TOLERANCE if tolerance is None else tolerance)

    @property
    def exact(self) -> bool:
        """Whether the weights are the checkpoint's."""
        return self.stored == "float32"

    def unknown(self) -> Precision:
        """Return the limits against the checkpoint's weights instead.

        Returns:
            The limits, with more noise if the weights are quantized.
        """
        return self if self.exact else replace(self, noise=UNKNOWN)

    def holds(self, steps: Sequence[Step]) -> bool:
        """Check the logits of steps.

        Args:
            steps: The compared steps.

        Returns:
            Whether they are within the limits.
        """
        if self.tolerance is not None and not all(step.off <= self.tolerance for step in steps):
            return False
        noise = [step.noise for step in steps]
        return self.noise is None or (median(noise) <= self.noise and max(noise) < UNRELATED)

    def explains(self, steps: Sequence[Step], at: int) -> bool:
        """Check whether quantization explains a different choice.

        Two candidates may change places if their logits differ by at most twice the median drift.

        Args:
            steps: All compared steps.
            at: The step at which the choices differ.

        Returns:
            Whether it does.
        """
        return not self.exact and steps[at].gap <= 2 * median(step.off for step in steps)

    def describe(self) -> str:
        """Describe the limits.

        Returns:
            A text for the report.
        """
        limits = [f"logits within {self.tolerance:g}"] if self.tolerance is not None else []
        limits += [f"noise mostly up to {self.noise:g} of their spread"] if self.noise is not None else []
        return ", ".join(limits)


def _counts(constant: ir.TensorProtocol) -> bool:
    return constant.dtype in _STORED and len(constant.shape) > 1 and constant.size >= MATRIX
