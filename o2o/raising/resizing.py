"""Resizing of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from o2o.model import shape_of
from o2o.raising.images import CHANNELS_FIRST, CHANNELS_LAST, text_of
from o2o.raising.operation import Operation, Rules


def _resize(of: Operation) -> ir.Value:
    """Resize of an image, by the coordinates that Circle's two operators have."""
    x = of.operand()
    shape = shape_of(x)
    if len(shape) != 4 or of.get("axes") is not None:
        of.refuse("Circle resizes images alone")
    scales, sizes = (1, None) if of.opset < 11 else (2, 3)
    if sizes is not None and of.has(sizes):
        size = of.ints(sizes)
        factors = [new / old for new, old in zip(size, shape, strict=True)]
    else:
        factors = (
            [float(n) for n in of.get("scales")]
            if "scales" in of.node.attributes
            else of.array(scales).tolist()
        )
        size = [int(dim * factor) for dim, factor in zip(shape, factors, strict=True)]
    if size[:2] != list(shape[:2]):
        of.refuse("it resizes other axes than height and width")
    mode = text_of(of.get("mode", "nearest"))
    default = "half_pixel" if of.opset >= 11 else "asymmetric"
    coordinates = text_of(of.get("coordinate_transformation_mode", default))
    rounding = text_of(of.get("nearest_mode", "round_prefer_floor" if of.opset >= 11 else "floor"))
    options: dict[str, Any] | None = {
        ("nearest", "asymmetric"): {"halfPixelCenters": False, "alignCorners": False},
        ("linear", "half_pixel"): {"halfPixelCenters": True},
        ("linear", "pytorch_half_pixel"): {"halfPixelCenters": True},
        ("linear", "align_corners"): {"alignCorners": True},
        ("linear", "asymmetric"): {"halfPixelCenters": False},
    }.get((mode, coordinates))
    is_whole = all(factor >= 1 and float(factor).is_integer() for factor in factors)
    rounds = coordinates in ("half_pixel", "pytorch_half_pixel") and rounding.startswith("round_")
    repeats = rounds or (coordinates, rounding) == ("asymmetric", "floor")
    if mode == "nearest" and is_whole and repeats:
        return _repeated(of, x, [int(factor) for factor in factors[2:]])
    is_ratio = all(dim * factor == new for dim, factor, new in zip(shape, factors, size, strict=True))
    if not is_ratio:
        of.refuse("its scales differ from the ratios of its sizes, which Circle takes")
    if options is None or (mode == "nearest" and rounding != "floor") or of.get("antialias", 0):
        of.refuse(f"Circle has no resizing of mode {mode} with {coordinates} coordinates ({rounding})")
    if mode == "linear" and coordinates == "pytorch_half_pixel" and 1 in size[2:]:
        of.refuse("Circle has no such coordinates for an axis of one element")
    op_type = "RESIZE_NEAREST_NEIGHBOR" if mode == "nearest" else "RESIZE_BILINEAR"
    image = of.transpose(x, CHANNELS_LAST)
    result = [size[0], *size[2:], size[1]]
    y = of.emit(op_type, image, of.indices(size[2:], "size"), dtype=x.dtype, shape=result, **options)
    return of.transpose(y, CHANNELS_FIRST)


def _repeated(of: Operation, x: ir.Value, factors: Sequence[int]) -> ir.Value:
    batch, channels, height, width = shape_of(x)
    wide = [batch, channels, height, factors[0], width, factors[1]]
    y = of.broadcast(of.reshape(x, [batch, channels, height, 1, width, 1]), wide)
    return of.reshape(y, [batch, channels, height * factors[0], width * factors[1]])


RULES: Rules = {"Resize": _resize, "Upsample": _resize}
