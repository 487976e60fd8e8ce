"""Convolutions. Circle's have the channels last, in images and in weights."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import is_plain
from o2o.formats.transposed_tensor import TransposedTensor
from o2o.model import shape_of
from o2o.raising.images import (
    CHANNELS_LAST,
    VALID,
    Windows,
    image_of,
    padded,
    result_of,
    sizes_of,
    text_of,
    windows_of,
)
from o2o.raising.operation import Operation, Rules
from o2o.rewriting.builder import add_tensor


def _permuted(of: Operation, weights: ir.Value, axes: tuple[int, ...]) -> ir.Value:
    """Weights with permuted axes. Constant ones are transposed while they are written."""
    shape = shape_of(weights)
    missing = 4 - len(shape)
    dims = [*shape[:2], *(1,) * missing, *shape[2:]]
    if not is_plain(weights) or weights.const_value is None:
        return of.transpose(of.reshape(weights, dims), axes)
    # The weights of a signal have no height.
    order = tuple(axis - (axis > 2) for axis in axes if axis != 2) if missing else axes
    tensor = TransposedTensor("", weights.const_value, tuple(dims[axis] for axis in axes), order)
    return add_tensor(of.op.graph, tensor, f"{weights.name}_channels_last")


def _bias(of: Operation, index: int, weights: ir.Value, count: int) -> ir.Value:
    if of.has(index):
        return of.operand(index)
    assert weights.dtype is not None
    return of.constant(np.zeros(count), "bias", weights.dtype.numpy())


def _conv(of: Operation) -> ir.Value:
    x, weights, groups = image_of(of, of.operand()), of.operand(1), int(of.get("group", 1))
    channels, count = shape_of(x)[1], shape_of(weights)[0]
    windows = windows_of(of, shape_of(of.operand())[2:], shape_of(weights)[2:])
    bias = _bias(of, 2, weights, count)
    image = padded(of, of.transpose(x, CHANNELS_LAST), windows.pads)
    if groups == channels and groups > 1 and count % groups == 0:
        filters = of.reshape(_permuted(of, weights, (1, 2, 3, 0)), [1, *windows.kernel, count])
        y = _convolution(
            of, "DEPTHWISE_CONV_2D", image, filters, bias, windows, depthMultiplier=count // groups
        )
    elif groups == 1:
        y = _convolution(of, "CONV_2D", image, _permuted(of, weights, (0, 2, 3, 1)), bias, windows)
    else:
        y = _grouped(of, image, weights, bias, windows, groups)
    return result_of(of, y)


def _grouped(
    of: Operation, image: ir.Value, weights: ir.Value, bias: ir.Value, windows: Windows, groups: int
) -> ir.Value:
    """Each group of channels by its own convolution. CONV_2D has no groups in LiteRT's own kernels."""
    channels, count = shape_of(image)[3], shape_of(weights)[0]
    axis = of.indices(3, "axis")
    parts = of.emit_all("SPLIT", [axis, image], groups, image.dtype, numSplits=groups)
    filters = _permuted(of, weights, (0, 2, 3, 1))
    results = []
    for group, part in enumerate(parts):
        rows = [group * (count // groups), count // groups]
        begin = of.indices([rows[0], 0, 0, 0], "begin")
        size = of.indices([rows[1], *windows.kernel, channels // groups], "size")
        own = of.emit("SLICE", filters, begin, size)
        own_bias = of.emit("SLICE", bias, of.indices(rows[:1], "begin"), of.indices(rows[1:], "size"))
        results.append(_convolution(of, "CONV_2D", part, own, own_bias, windows))
    return of.emit("CONCATENATION", *results, axis=3)


def _convolution(
    of: Operation,
    op_type: str,
    image: ir.Value,
    filters: ir.Value,
    bias: ir.Value,
    windows: Windows,
    **options: int,
) -> ir.Value:
    count = shape_of(filters)[3 if op_type == "DEPTHWISE_CONV_2D" else 0]
    shape = [shape_of(image)[0], *sizes_of(image, windows), count]
    return of.emit(
        op_type,
        image,
        filters,
        bias,
        dtype=image.dtype,
        shape=shape,
        name="convolution",
        padding=VALID,
        strideH=windows.strides[0],
        strideW=windows.strides[1],
        dilationHFactor=windows.dilations[0],
        dilationWFactor=windows.dilations[1],
        **options,
    )


def _conv_transpose(of: Operation) -> ir.Value:
    x, weights = image_of(of, of.operand()), of.operand(1)
    rank, kernel = len(shape_of(of.operand())), shape_of(weights)[2:]
    if int(of.get("group", 1)) != 1 or any(size != 1 for size in of.get("dilations") or []):
        of.refuse("Circle's TRANSPOSE_CONV has neither groups nor dilations")
    if of.get("output_shape") or text_of(of.get("auto_pad", "NOTSET")) not in ("NOTSET", "VALID"):
        of.refuse("the padding of its result is not given by numbers")
    missing, lines = [1] * (4 - rank), len(kernel)
    strides = missing + list(of.get("strides") or [1] * lines)
    pads = list(of.get("pads") or [0] * (2 * lines))
    begins, behind = ([0] * len(missing) + part for part in (pads[:lines], pads[lines:]))
    extra = [0] * len(missing) + list(of.get("output_padding") or [0] * lines)
    full = [
        (dim - 1) * stride + width
        for dim, stride, width in zip(shape_of(x)[2:], strides, missing + list(kernel), strict=True)
    ]
    sizes = [
        whole + more - low - high for whole, more, low, high in zip(full, extra, begins, behind, strict=True)
    ]
    batch, count = shape_of(x)[0], shape_of(weights)[1]
    shape = [batch, *full, count]
    y = of.emit(
        "TRANSPOSE_CONV",
        of.indices(shape, "shape"),
        _permuted(of, weights, (1, 2, 3, 0)),
        of.transpose(x, CHANNELS_LAST),
        dtype=x.dtype,
        shape=shape,
        padding=VALID,
        strideH=strides[0],
        strideW=strides[1],
    )
    y = padded(of, y, [(0, max(0, more - high)) for more, high in zip(extra, behind, strict=True)])
    if list(shape_of(y)[1:3]) != sizes:
        y = of.emit(
            "SLICE", y, of.indices([0, *begins, 0], "begin"), of.indices([batch, *sizes, count], "size")
        )
    y = of.emit("ADD", y, of.operand(2)) if of.has(2) else y
    return result_of(of, y)


RULES: Rules = {"Conv": _conv, "ConvTranspose": _conv_transpose}
