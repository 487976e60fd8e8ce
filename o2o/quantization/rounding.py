"""Rounding of matrix rows to a scheme: scales, quantized values, packed bytes."""

from __future__ import annotations

import numpy as np

from o2o.quantization.error import QuantizationError
from o2o.quantization.schemes import Scheme


class RowQuantizer:
    """Quantizes rows in chunks, with buffers that are allocated once."""

    def __init__(self, scheme: Scheme, rows: int, columns: int) -> None:
        """Allocate the buffers.

        Args:
            scheme: The scheme.
            rows: The largest number of rows in a chunk.
            columns: The number of columns D.
        """
        self.scheme = scheme
        self._floats = np.empty((rows, columns), np.float32)
        self._stored = np.empty((rows, columns), np.float16 if not scheme.limit else np.int8)

    def quantize(self, w: np.ndarray, scales: np.ndarray, error: QuantizationError) -> np.ndarray:
        """Quantize rows.

        Args:
            w: The rows, float32 [rows, D].
            scales: Their scales [rows, blocks].
            error: Statistics to which the error of these rows is added.

        Returns:
            The stored bytes, uint8 [nbytes]. The next call may overwrite them. Of two 4-bit numbers the first
            is in the low half of a byte.
        """
        floats, stored = self._floats[: len(w)], self._stored[: len(w)]
        if self.scheme.limit:
            shape, scale = (*scales.shape, -1), scales.astype(np.float32, copy=False)[..., None]
            blocks = floats.reshape(shape)
            _round(w.reshape(shape), scale, self.scheme, blocks)
            np.copyto(stored, floats, casting="unsafe")
            np.multiply(blocks, scale, out=blocks)
        else:
            np.copyto(stored, w, casting="same_kind")
            np.copyto(floats, stored)
        np.subtract(floats, w, out=floats)
        error.add_numbers(w.reshape(-1), floats.reshape(-1))
        raw: np.ndarray = stored.reshape(-1).view(np.uint8)
        return (raw[0::2] & 15) | (raw[1::2] << 4) if self.scheme.bits == 4 else raw


def block_maxima(w: np.ndarray, scheme: Scheme) -> np.ndarray:
    """Return the largest absolute value of each block.

    Args:
        w: Rows, float32 [rows, D].
        scheme: The scheme, which defines the blocks.

    Returns:
        Maxima, float32 [rows, blocks]; NaN for a block that contains NaN.
    """
    blocks = np.abs(w).reshape(len(w) * (scheme.blocks(w.shape[1]) or 1), -1)
    if scheme.block:  # for many short rows a maximum along the first axis is faster
        blocks = np.ascontiguousarray(blocks.T)
    return blocks.max(0 if scheme.block else 1).reshape(len(w), -1)


def best_scales(w: np.ndarray, maxima: np.ndarray, scheme: Scheme) -> np.ndarray:
    """Return the scales with the smallest quantization error.

    Args:
        w: Rows, float32 [rows, D].
        maxima: Their `block_maxima` [rows, blocks].
        scheme: The scheme.

    Returns:
        Scales, float32 [rows, blocks].
    """
    candidates = [scheme.scales(maxima, limit) for limit in scheme.limits]
    if len(candidates) == 1:
        return candidates[0]
    blocks = w.reshape(*maxima.shape, -1)
    buffer = np.empty_like(blocks)
    errors = []
    for scales in candidates:
        scale = scales[..., None]
        _round(blocks, scale, scheme, buffer)
        np.multiply(buffer, scale, out=buffer)
        np.subtract(buffer, blocks, out=buffer)
        errors.append(np.einsum("rbc,rbc->rb", buffer, buffer))
    return np.choose(np.argmin(errors, axis=0), candidates)


def _round(blocks: np.ndarray, scale: np.ndarray, scheme: Scheme, out: np.ndarray) -> None:
    """Write the quantized values of `blocks` [..., columns of a block] to `out`, float32."""
    np.divide(blocks, scale, out=out)
    np.rint(out, out=out)
    np.clip(out, scheme.lowest, scheme.limit, out=out)
