"""How the numbers of a matrix become smaller ones, and back.

A scheme with a `limit` is symmetric: q = round(w / s), w ~ s q, where the largest |w| of a row, or of a block
of it, becomes `limit`; bytes and scales are those that ai-edge-quantizer's min-max algorithm gives. With 4
bits it may also become a little more than there is room for, where cutting it off costs less than the smaller
scale helps all others: the root mean square of what is lost is a tenth lower.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir

SMALLEST = 1e-9  # the least that a row's largest number counts as: no scale is 0
HALF = np.finfo(np.float16)
CUT = (0.5, 1.0, 1.5)  # more are hardly better, each takes its time
LARGEST_SCALE = 65280  # the largest float16 with 8 bits: the next would be infinite


@dataclass(frozen=True)
class Scheme:
    """dtype: what is stored. limit: what the largest number becomes; 0 for a float. lowest: the least one.
    block: the columns that share a scale, 0 for all of a row. tolerance: how far results may be off, as a
    share of the largest number, for `--check`."""

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
        """Whether rows of `columns` numbers can be stored so: in whole blocks, in whole bytes."""
        return columns % (self.block or 8 // min(self.bits, 8)) == 0

    def blocks(self, columns: int) -> int:
        """The number of scales of a row."""
        return (columns // self.block if self.block else 1) if self.limit else 0

    @property
    def limits(self) -> tuple[float, ...]:
        """What the largest number of a block may become; what is beyond the room for it is cut off."""
        return (self.limit, *(self.limit + extra for extra in CUT if self.bits == 4))

    def scales(self, bounds: np.ndarray, limit: float | None = None) -> np.ndarray:
        """The scales, float32, for the largest |w| that each is for, float32, to become `limit`.

        Those of blocks are stored as float16, with the 8 bits that XNNPACK uses of them.
        """
        limit = limit or self.limit
        found = np.maximum(bounds, np.float32(SMALLEST)) / np.float32(limit)
        if not self.block:
            return found
        half = found.astype(ml_dtypes.bfloat16).astype(np.float16)
        half = np.maximum(half, HALF.smallest_subnormal)
        # the smallest float16 are far apart: one that was rounded down may be too small for its block
        small = bounds > (limit + 0.5) * half.astype(np.float32)
        half[small] = np.nextafter(half[small], np.float16(np.inf))
        return half.astype(np.float32)

    @property
    def largest(self) -> float:
        """The largest number that can be stored."""
        if not self.limit:
            return float(HALF.max)
        return float(self.limit * LARGEST_SCALE) if self.block else float(np.finfo(np.float32).max)


INT8 = Scheme("int8", ir.DataType.INT8, limit=127, lowest=-127, tolerance=0.1)
INT4_BLOCK32 = Scheme("int4_block32", ir.DataType.INT4, limit=7, lowest=-8, block=32, tolerance=0.5)
INT4_BLOCK128 = Scheme("int4_block128", ir.DataType.INT4, limit=7, lowest=-8, block=128, tolerance=0.5)
FLOAT16 = Scheme("float16", ir.DataType.FLOAT16, tolerance=0.01)

# From the most exact to the least; what does not fit into whole blocks takes the next that does, upwards.
SCHEMES = {scheme.name: scheme for scheme in (FLOAT16, INT8, INT4_BLOCK32, INT4_BLOCK128)}


def fitting(scheme: Scheme, columns: int) -> Scheme:
    """`scheme`, or the next more exact one that rows of `columns` numbers fit into."""
    order = list(SCHEMES.values())
    return next(s for s in reversed(order[: order.index(scheme) + 1]) if s.fits(columns))


def more_exact(a: Scheme | None, b: Scheme | None) -> Scheme | None:
    """The more exact of both; None, which is float32, before all."""
    order = [None, *SCHEMES.values()]
    return min(a, b, key=order.index)
