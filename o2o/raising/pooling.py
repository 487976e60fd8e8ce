"""Pools over images, and the normalization over neighboring channels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from o2o.model import shape_of
from o2o.raising.images import (
    CHANNELS_LAST,
    VALID,
    Windows,
    image_of,
    padded,
    result_of,
    sizes_of,
    windows_of,
)
from o2o.raising.operation import Operation, Rules


def _pool(of: Operation, op_type: str, image: ir.Value, windows: Windows) -> ir.Value:
    shape = [shape_of(image)[0], *sizes_of(image, windows), shape_of(image)[3]]
    return of.emit(
        op_type,
        image,
        shape=shape,
        padding=VALID,
        strideH=windows.strides[0],
        strideW=windows.strides[1],
        filterHeight=windows.kernel[0],
        filterWidth=windows.kernel[1],
    )


def _max_pool(of: Operation) -> Sequence[ir.Value]:
    x = image_of(of, of.operand())
    windows = windows_of(of, shape_of(of.operand())[2:], of.get("kernel_shape"))
    if any(size != 1 for size in windows.dilations):
        of.refuse("Circle's MAX_POOL_2D has no dilations")
    image = padded(of, of.transpose(x, CHANNELS_LAST), windows.pads, _lowest(x))
    return [result_of(of, _pool(of, "MAX_POOL_2D", image, windows))]


def _lowest(x: ir.Value) -> float:
    """The lowest number of a dtype."""
    assert x.dtype is not None
    return -math.inf if x.dtype.is_floating_point() else int(np.iinfo(x.dtype.numpy()).min)


def _average_pool(of: Operation) -> ir.Value:
    """The mean of each window. Without `count_include_pad`, padding counts as no element."""
    x = image_of(of, of.operand())
    windows = windows_of(of, shape_of(of.operand())[2:], of.get("kernel_shape"))
    if any(size != 1 for size in windows.dilations):
        of.refuse("Circle's AVERAGE_POOL_2D has no dilations")
    y = _pool(of, "AVERAGE_POOL_2D", padded(of, of.transpose(x, CHANNELS_LAST), windows.pads), windows)
    if any(size for pair in windows.pads for size in pair):
        given = list(of.get("pads") or []) if of.get("count_include_pad", 0) else []
        half = len(given) // 2
        counted = [(0, 0)] * (2 - half) + list(zip(given[:half], given[half:], strict=True))
        counts = _counts(shape_of(x)[2:], windows, counted)
        if not np.all(counts == math.prod(windows.kernel)):
            assert x.dtype is not None
            factors = math.prod(windows.kernel) / counts
            y = of.emit("MUL", y, of.constant(factors[None, :, :, None], "factors", x.dtype.numpy()))
    return result_of(of, y)


def _counts(sizes: Sequence[int], windows: Windows, counted: Sequence[tuple[int, int]]) -> np.ndarray:
    """How many elements of each window count."""
    by_axis = []
    for size, (low, high), (more, further), kernel, stride in zip(
        sizes, windows.pads, counted, windows.kernel, windows.strides, strict=True
    ):
        is_counted = np.zeros(low + size + high)
        is_counted[low - more : low + size + further] = 1
        starts = range(0, len(is_counted) - kernel + 1, stride)
        by_axis.append(np.array([is_counted[start : start + kernel].sum() for start in starts]))
    return np.asarray(by_axis[0][:, None] * by_axis[1][None, :])


def _global(of: Operation, op_type: str) -> ir.Value:
    x = of.operand()
    axes = list(range(2, len(shape_of(x))))
    return of.emit(op_type, x, of.indices(axes, "axes"), keepDims=True)


def _lrn(of: Operation) -> ir.Value:
    x, size = image_of(of, of.operand()), int(of.get("size"))
    if size % 2 == 0:
        of.refuse("Circle's LOCAL_RESPONSE_NORMALIZATION has as many channels on both sides")
    image = of.transpose(x, CHANNELS_LAST)
    y = of.emit(
        "LOCAL_RESPONSE_NORMALIZATION",
        image,
        shape=shape_of(image),
        radius=size // 2,
        bias=float(of.get("bias", 1.0)),
        alpha=float(of.get("alpha", 1e-4)) / size,
        beta=float(of.get("beta", 0.75)),
    )
    return result_of(of, y)


RULES: Rules = {
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": lambda of: _global(of, "MEAN"),
    "GlobalMaxPool": lambda of: _global(of, "REDUCE_MAX"),
    "LRN": _lrn,
}
