"""Quantization schemes: the stored dtype of a matrix, and the scales of its rows or blocks.

A scheme with a `limit` is symmetric: q = round(w / s), w ~ s q. The scale s maps the largest |w| of a row, or
of a block of a row, to `limit`. Bytes and scales equal the result of ai-edge-quantizer's min-max algorithm.
With 4 bits, several scales are tried, with which the largest numbers are clipped. The one with the smallest
error is taken, which lowers the root mean square error by a tenth.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir

SMALLEST = 1e-9  # lower bound of a row's largest number, so that no scale is 0
HALF = np.finfo(np.float16)
CLIPPING = (0.5, 1.0, 1.5)  # steps beyond `limit` for the largest number; more steps are hardly better
LARGEST_SCALE = 65280  # the largest float16 that is also a bfloat16


@dataclass(frozen=True)
class Scheme:
    """A way to store a matrix.

    Attributes:
        name: The name in recipes, flags and reports.
        dtype: The stored dtype.
        limit: The quantized value of the largest number; 0 for floating point.
        lowest: The smallest quantized value.
        block: The number of columns that share a scale; 0 for a whole row.
        tolerance: The tolerance of `--check` for results, relative to the largest number.
    """

    name: str
    dtype: ir.DataType
    limit: int = 0
    lowest: int = 0
    block: int = 0
    tolerance: float = 0.0

    @property
    def bits(self) -> int:
        return self.dtype.bitwidth

    def fits(self, columns: int) -> bool:
        """Return whether rows can be stored with this scheme.

        Args:
            columns: The number of columns.

        Returns:
            True if a row is a whole number of blocks and of bytes.
        """
        return columns % (self.block or 8 // min(self.bits, 8)) == 0

    def blocks(self, columns: int) -> int:
        """Return the number of scales for each row.

        Args:
            columns: The number of columns.

        Returns:
            The number of scales; 0 for floating point.
        """
        return (columns // self.block if self.block else 1) if self.limit else 0

    @property
    def limits(self) -> tuple[float, ...]:
        """The quantized values to try for the largest number of a block. Values out of range are clipped."""
        return (self.limit, *(self.limit + extra for extra in CLIPPING if self.bits == 4))

    def scales(self, maxima: np.ndarray, limit: float | None = None) -> np.ndarray:
        """Return the scales that map the largest numbers to a limit.

        Args:
            maxima: The largest |w| of each row or block, float32.
            limit: The quantized value of the largest number; None for the scheme's limit.

        Returns:
            The scales, float32, in the shape of `maxima`. Scales of blocks are float16 numbers that are also
            bfloat16 numbers: the file stores float16, XNNPACK computes with bfloat16.
        """
        limit = limit or self.limit
        scales = np.maximum(maxima, np.float32(SMALLEST)) / np.float32(limit)
        if not self.block:
            return scales
        half = scales.astype(ml_dtypes.bfloat16).astype(np.float16)
        half = np.maximum(half, HALF.smallest_subnormal)
        # The smallest float16 numbers are far apart: a rounded scale may be too small for its block.
        small = maxima > (limit + 0.5) * half.astype(np.float32)
        half[small] = np.nextafter(half[small], np.float16(np.inf))
        return half.astype(np.float32)

    @property
    def largest(self) -> float:
        """The largest number that the scheme can store."""
        if not self.limit:
            return float(HALF.max)
        return float(self.limit * LARGEST_SCALE) if self.block else float(np.finfo(np.float32).max)


INT8 = Scheme("int8", ir.DataType.INT8, limit=127, lowest=-127, tolerance=0.1)
INT4_BLOCK32 = Scheme("int4_block32", ir.DataType.INT4, limit=7, lowest=-8, block=32, tolerance=0.5)
INT4_BLOCK128 = Scheme("int4_block128", ir.DataType.INT4, limit=7, lowest=-8, block=128, tolerance=0.5)
FLOAT16 = Scheme("float16", ir.DataType.FLOAT16, tolerance=0.01)

# From the most to the least accurate. Rows without whole blocks take the next more accurate scheme.
SCHEMES = {scheme.name: scheme for scheme in (FLOAT16, INT8, INT4_BLOCK32, INT4_BLOCK128)}


def fitting(scheme: Scheme, columns: int) -> Scheme:
    """Return the scheme for rows of a given length.

    Args:
        scheme: The requested scheme.
        columns: The number of columns.

    Returns:
        `scheme` if it fits, else the next more accurate one that does.
    """
    order = list(SCHEMES.values())
    return next(s for s in reversed(order[: order.index(scheme) + 1]) if s.fits(columns))


def more_accurate(a: Scheme | None, b: Scheme | None) -> Scheme | None:
    """Return the more accurate of two schemes.

    Args:
        a: A scheme; None for float32.
        b: Another.

    Returns:
        The more accurate one. None, float32, is the most accurate.
    """
    order = [None, *SCHEMES.values()]
    return min(a, b, key=order.index)
