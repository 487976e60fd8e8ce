"""Values that a static graph computes from its input `position`: numbers, and which keys are visible."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from o2o.rewriting.onnx_builder import OnnxBuilder
from o2o.rewriting.static_caches.interface import Sizes


class PositionNumbers:
    """Builds values from the position, each once."""

    def __init__(self, position: ir.Value, op: OnnxBuilder, sizes: Sizes) -> None:
        """Choose the place.

        Args:
            position: The position of the first token, int64 [1].
            op: Builds in front of all nodes that need the values.
            sizes: The sizes of the decoder.
        """
        self.position, self.op, self.sizes = position, op, sizes
        self._lines: dict[tuple[bytes, bytes, tuple[int, ...], ir.DataType], ir.Value] = {}

    def line(self, offset: np.ndarray, slope: np.ndarray, dtype: ir.DataType) -> ir.Value:
        """Return `offset + slope * position`.

        Args:
            offset: Integers of any shape.
            slope: Integers of that shape.
            dtype: The dtype of the result.

        Returns:
            The value.
        """
        key = (offset.tobytes(), slope.tobytes(), offset.shape, dtype)
        if key not in self._lines:
            op, value = self.op, self.position
            if offset.ndim == 0:
                value = op.reshape(value, [], "scalar")
            if not np.all(slope == 1):
                value = op.node("Mul", [value, op.constant(slope, "slope")], offset.shape)
            if np.any(offset) or value.shape != ir.Shape(offset.shape):
                value = op.node("Add", [value, op.constant(offset, "offset")], offset.shape)
            self._lines[key] = value if dtype == ir.DataType.INT64 else op.cast(value, dtype, "cast")
        return self._lines[key]

    def visible(self, op: OnnxBuilder, is_causal: bool) -> ir.Value:
        """Compute which keys each query sees.

        Args:
            op: Builds the comparison.
            is_causal: Whether a query sees no later tokens of its own run.

        Returns:
            Booleans [T, S].
        """
        t, s = self.sizes.tokens, self.sizes.capacity
        last = np.arange(t)[:, None] if is_causal else np.full((t, 1), t - 1)
        limit = self.line(last.astype(np.int64), np.ones_like(last, dtype=np.int64), ir.DataType.INT64)
        keys = op.constant(np.arange(s, dtype=np.int64), "keys")
        return op.node("LessOrEqual", [keys, limit], [t, s], ir.DataType.BOOL, name="visible")
