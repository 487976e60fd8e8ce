"""What is compared of a tensor, as data for JSON: its dtype, shape and quantization."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from o2o.formats.tensors import is_quantized
from o2o.model import dims_of, dtype_name, quantization_constants

Json = dict[str, Any]


def tensor_fields(value: ir.Value) -> Json:
    """Describe a tensor by what is compared: its dtype and shape, and how it is quantized.

    Args:
        value: A tensor.

    Returns:
        The fields by name.
    """
    entry: Json = {"dtype": dtype_name(value), "shape": stored_shape(value)}
    if is_quantized(value):
        entry["quantization"] = _quantization(value)
    if value.meta.get("fields", {}).get("isVariable"):
        entry["variable"] = True
    return entry


def stored_shape(value: ir.Value) -> list[int | str] | None:
    """Return the shape of a tensor as its file has it.

    Args:
        value: A tensor.

    Returns:
        The dimensions: -1, or a name, for one of any size. None if the rank is not known.
    """
    if (dims := dims_of(value)) is None:
        return None
    dynamic = value.meta.get("fields", {}).get("shapeSignature")
    return list(dims) if dynamic is None else [int(dim) for dim in dynamic]


def _quantization(value: ir.Value) -> str:
    """Scales in words: how many, along which axis, and a digest of them."""
    quantization = value.meta["fields"]["quantization"]
    if quantization_constants(value):
        return f"blocks of {getattr(quantization.details, 'blockSize', '?')}"
    scales, zeros = quantization.scale, quantization.zeroPoint
    one = (
        f"scale {float(scales[0]):.7g}"
        if len(scales) == 1
        else f"{len(scales)} scales, first {float(scales[0]):.7g}"
    )
    zero = f", zero point {int(zeros[0])}" if zeros is not None and len(zeros) and zeros.any() else ""
    axis = f" along axis {quantization.quantizedDimension}" if len(scales) > 1 else ""
    return f"{one}{axis}{zero}"


def changed_fields(before: Json, after: Json) -> Json:
    """Compare two descriptions.

    Args:
        before: Fields by name.
        after: Other fields.

    Returns:
        The fields that differ: the two values, by name.
    """
    names = dict.fromkeys((*before, *after))
    return {
        name: [before.get(name), after.get(name)] for name in names if before.get(name) != after.get(name)
    }


def value_name(value: ir.Value | None) -> str:
    """Return the name of a tensor for a message.

    Args:
        value: A tensor; None for an operand that is left out.

    Returns:
        The name.
    """
    return "none" if value is None else value.name or "(no name)"
