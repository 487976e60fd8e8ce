"""Images [N, C, H, W] of ONNX as images [N, H, W, C] of Circle, and the windows that move over them.

A signal [N, C, W] is an image of height 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from o2o.model import shape_of
from o2o.raising.operation import Operation

VALID = 1
"""The number of `VALID` padding in options: none."""
CHANNELS_LAST = (0, 2, 3, 1)
CHANNELS_FIRST = (0, 3, 1, 2)


@dataclass
class Windows:
    """The windows of a convolution or pool over the two axes of an image.

    Attributes:
        kernel: Their sizes.
        strides: The distances between them.
        dilations: The distances between their elements.
        pads: Rows and columns that are added before and behind.
    """

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    pads: list[tuple[int, int]]


def text_of(value: str | bytes) -> str:
    """Return an attribute that is text.

    Args:
        value: The attribute.

    Returns:
        The text.
    """
    return value.decode() if isinstance(value, bytes) else value


def image_of(of: Operation, x: ir.Value) -> ir.Value:
    """Return a signal or image as an image.

    Args:
        of: The operation.
        x: [N, C, W] or [N, C, H, W].

    Returns:
        [N, C, H, W].

    Raises:
        NotRaised: It has other axes.
    """
    shape = shape_of(x)
    if len(shape) not in (3, 4):
        of.refuse(f"it goes over {len(shape) - 2} axes, and Circle's over images")
    return of.reshape(x, [*shape[:2], *(1,) * (4 - len(shape)), *shape[2:]])


def windows_of(of: Operation, sizes: Sequence[int], kernel: Sequence[int]) -> Windows:
    """Read the windows of a convolution or pool.

    Args:
        of: The operation.
        sizes: The sizes of the axes they move over: height and width, or width alone.
        kernel: The sizes of a window on these axes.

    Returns:
        The windows over height and width.
    """
    count = len(kernel)
    strides, dilations = (list(of.get(name) or [1] * count) for name in ("strides", "dilations"))
    spans = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    pads = list(of.get("pads") or [0] * (2 * count))
    auto = text_of(of.get("auto_pad", "NOTSET"))
    both = list(zip(pads[:count], pads[count:], strict=True))
    if auto == "VALID":
        both = [(0, 0)] * count
    elif auto in ("SAME_UPPER", "SAME_LOWER"):
        totals = [
            max(0, (math.ceil(size / stride) - 1) * stride + span - size)
            for size, stride, span in zip(sizes, strides, spans, strict=True)
        ]
        halves = [(total // 2, total - total // 2) for total in totals]
        both = halves if auto == "SAME_UPPER" else [pair[::-1] for pair in halves]
    if of.get("ceil_mode", 0):
        both = [
            (low, high + _rest(size + low + high, span, stride, low + size))
            for size, stride, span, (low, high) in zip(sizes, strides, spans, both, strict=True)
        ]
    missing = 2 - count
    return Windows(
        [1] * missing + list(kernel),
        [1] * missing + strides,
        [1] * missing + dilations,
        [(0, 0)] * missing + both,
    )


def _rest(size: int, span: int, stride: int, stop: int) -> int:
    """What is missing for one more window, which must begin before `stop`."""
    rest = (size - span) % stride
    begins = (size - span) // stride * stride + stride
    return stride - rest if rest and begins < stop else 0


def padded(of: Operation, x: ir.Value, pads: Sequence[tuple[int, int]], number: float = 0) -> ir.Value:
    """Add rows and columns of a number around an image.

    Args:
        of: The operation.
        x: [N, H, W, C].
        pads: How many, before and behind, on each of the two axes.
        number: The number.

    Returns:
        The larger image.
    """
    if not any(size for pair in pads for size in pair):
        return x
    paddings = of.constant(np.asarray([(0, 0), *pads, (0, 0)], np.int32), "paddings")
    if number == 0:
        return of.emit("PAD", x, paddings)
    return of.emit("PADV2", x, paddings, of.reshape(of.like(number, x), [1]))


def sizes_of(image: ir.Value, windows: Windows) -> list[int]:
    """Compute the height and width of a result.

    Args:
        image: The padded image [N, H, W, C].
        windows: The windows over it.

    Returns:
        The height and the width.
    """
    return [
        (size - (kernel - 1) * dilation - 1) // stride + 1
        for size, kernel, stride, dilation in zip(
            shape_of(image)[1:3], windows.kernel, windows.strides, windows.dilations, strict=True
        )
    ]


def result_of(of: Operation, y: ir.Value) -> ir.Value:
    """Return an image as the result of the node.

    Args:
        of: The operation, whose first operand is a signal or an image.
        y: [N, H, W, C].

    Returns:
        [N, C, W] or [N, C, H, W], as the first operand.
    """
    y = of.transpose(y, CHANNELS_FIRST)
    rank = len(shape_of(of.operand()))
    return of.reshape(y, [*shape_of(y)[:2], *shape_of(y)[6 - rank :]])
