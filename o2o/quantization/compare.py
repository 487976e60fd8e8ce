"""Comparison of the constants of two files of one model: quantization errors and bytes."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from o2o.errors import ModelError
from o2o.formats.tensors import is_quantized, storage_key
from o2o.model import Model, quantization_constants, shape_of
from o2o.quantization.error import QuantizationError
from o2o.quantization.tensors import CHUNK
from o2o.quantization.weight_uses import LM_HEAD_SUFFIX
from o2o.rewriting.stacked_weights import Shapes, unstack

HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass(frozen=True)
class Comparison:
    """A constant that the two files store with different dtypes.

    Attributes:
        name: Its name.
        shape: Its shape.
        stored: How it is stored before and after, such as `int8` or `int4 in blocks of 32`.
        bytes: Its bytes before and after, with scales.
        error: The statistics of the difference.
    """

    name: str
    shape: tuple[int, ...]
    stored: tuple[str, str]
    bytes: tuple[int, int]
    error: QuantizationError


def compare(before: Model, after: Model) -> list[Comparison]:
    """Compare the constants of two models by name, one at a time.

    Args:
        before: The first model.
        after: The second model.

    Returns:
        The constants that the second model stores with another dtype, in its order.

    Raises:
        ModelError: A quantized constant has no counterpart, or one of another shape.
    """
    olds, news = _constants(before), _constants(after)
    shapes = [{name: shape_of(value) for name, value in values.items()} for values in (olds, news)]
    olds, news = _unstacked(olds, shapes[1]), _unstacked(news, shapes[0])
    seen: set[Hashable] = set()
    comparisons = []
    for name, value in news.items():
        assert value.const_value is not None
        key, old = (
            storage_key(value.const_value),
            olds.get(name) or olds.get(name.removesuffix(LM_HEAD_SUFFIX)),
        )
        if key in seen or not (_is_reduced(value) or (old is not None and _is_reduced(old))):
            continue
        seen.add(key)
        if old is None:
            raise ModelError(
                f"the first model has no {name}, which is {_stored(value)} in the second: were both exported "
                "from one checkpoint with the same options?"
            )
        if shape_of(old) != shape_of(value):
            raise ModelError(
                f"{name} is {list(shape_of(old))} in the first model, {list(shape_of(value))} in the second: "
                "were both exported from one checkpoint?"
            )
        stored = _stored(old), _stored(value)
        if stored[0] != stored[1]:
            error = _error(dequantized(old), dequantized(value))
            sizes = _bytes(old), _bytes(value)
            comparisons.append(Comparison(name, tuple(shape_of(value)), stored, sizes, error))
    return comparisons


def _is_reduced(value: ir.Value) -> bool:
    return is_quantized(value) or value.dtype in HALVES


def _constants(model: Model) -> dict[str, ir.Value]:
    """The constants of all graphs by name, without the scales of others; the first one of each name."""
    constants: dict[str, ir.Value] = {}
    for graph in model.graphs:
        values = graph.initializers.values()
        parameters = {id(other) for value in values for other in quantization_constants(value).values()}
        for value in values:
            if value.const_value is not None and id(value) not in parameters:
                constants.setdefault(value.name or "", value)
    return constants


def _unstacked(constants: dict[str, ir.Value], shapes: Shapes) -> dict[str, ir.Value]:
    """`constants`, with stacked matrices split into the other model's matrices, by their `shapes`."""
    return {
        name: part
        for whole, value in constants.items()
        for name, part in ({whole: value} if whole in shapes else unstack(value, shapes)).items()
    }


def dequantized(value: ir.Value) -> np.ndarray:
    """Dequantize a constant: (stored - zero point) * scale.

    Args:
        value: A constant, quantized or not.

    Returns:
        Its numbers, float32, in its shape.

    Raises:
        ModelError: It has zero points by block, which are not supported.
    """
    assert value.const_value is not None
    stored: np.ndarray = value.const_value.numpy().astype(np.float32)
    if not is_quantized(value):
        return stored
    references = quantization_constants(value)
    if "zeroPoints" in references:
        raise ModelError(f"{value.name} has zero points by block: only symmetric blocks are supported")
    zeros = value.meta["fields"]["quantization"].zeroPoint
    if zeros is not None and "scales" not in references:
        stored -= _along(value, zeros)
    return stored * scales(value)


def scales(value: ir.Value) -> np.ndarray:
    """Return the scales of a quantized constant.

    Args:
        value: A quantized constant.

    Returns:
        The scales, float32, in a shape that broadcasts to the constant's.
    """
    if (blocks := quantization_constants(value).get("scales")) is not None:
        assert blocks.const_value is not None
        by_block = blocks.const_value.numpy().astype(np.float32).reshape(-1)
        shape = shape_of(value)
        return np.repeat(by_block, math.prod(shape) // by_block.size).reshape(shape)
    return _along(value, value.meta["fields"]["quantization"].scale)


def _along(value: ir.Value, parameters: np.ndarray) -> np.ndarray:
    """Parameters for the whole tensor or along one axis, in a shape that broadcasts to it."""
    along = [1] * len(shape_of(value))
    if len(parameters) > 1:
        axis = value.meta["fields"]["quantization"].quantizedDimension
        if not 0 <= axis < len(along):
            raise ModelError(f"{value.name} has scales along axis {axis}, and only {len(along)} axes")
        along[axis] = -1
    return np.asarray(parameters, np.float32).reshape(along)


def _stored(value: ir.Value) -> str:
    kind = "float32" if value.dtype == ir.DataType.FLOAT else str(value.dtype).lower()
    quantization = value.meta.get("fields", {}).get("quantization")
    size = getattr(getattr(quantization, "details", None), "blockSize", 0)
    return f"{kind} in blocks of {size}" if size else kind


def _bytes(value: ir.Value) -> int:
    """The bytes of `value` in a file, with scales and zero points."""
    assert value.const_value is not None
    size = value.const_value.nbytes
    for other in quantization_constants(value).values():
        assert other.const_value is not None
        size += other.const_value.nbytes
    quantization = value.meta.get("fields", {}).get("quantization")
    for parameter, width in (("scale", 4), ("zeroPoint", 8)):
        size += width * len(() if (one := getattr(quantization, parameter, None)) is None else one)
    return size


def _error(before: np.ndarray, after: np.ndarray) -> QuantizationError:
    error = QuantizationError()
    numbers, errors = before.reshape(-1), (after - before).reshape(-1)
    for start in range(0, numbers.size, CHUNK):
        error.add_numbers(numbers[start : start + CHUNK], errors[start : start + CHUNK])
    return error
