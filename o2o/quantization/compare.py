"""What became of a model's constants in another file of it: exactness and bytes, by what the files say."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from o2o.errors import ModelError
from o2o.formats.tensors import is_quantized, storage_key
from o2o.model import Model, quantization_constants, shape_of
from o2o.quantization.tensors import AT_ONCE, Error
from o2o.quantization.weight_uses import HEAD
from o2o.rewriting.stacked_weights import Shapes, parts

HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass(frozen=True)
class Compared:
    """A constant that is stored otherwise than it was. stored: as what, before and after, `int8`, `int4 in
    blocks of 32`. bytes: before and after, scales included."""

    name: str
    shape: tuple[int, ...]
    stored: tuple[str, str]
    bytes: tuple[int, int]
    error: Error


def compare(before: Model, after: Model) -> list[Compared]:
    """The constants of `after` that are stored otherwise than those of the same name in `before`, in order.

    They are read one at a time. Raises ModelError for one that has no counterpart, or one of another shape.
    """
    known, made = _constants(before), _constants(after)
    shapes = [{name: shape_of(value) for name, value in one.items()} for one in (known, made)]
    known, made = _apart(known, shapes[1]), _apart(made, shapes[0])
    seen: set[Hashable] = set()
    found = []
    for name, value in made.items():
        assert value.const_value is not None
        key, old = storage_key(value.const_value), known.get(name) or known.get(name.removesuffix(HEAD))
        if key in seen or not (_smaller(value) or (old is not None and _smaller(old))):
            continue
        seen.add(key)
        if old is None:
            raise ModelError(
                f"the first model has no {name}, which is {_stored(value)} in the second: are both made of "
                "one checkpoint, in one way?"
            )
        if shape_of(old) != shape_of(value):
            raise ModelError(
                f"{name} is {list(shape_of(old))} in the first model, {list(shape_of(value))} in the second: "
                "are both made of one checkpoint?"
            )
        stored = _stored(old), _stored(value)
        if stored[0] != stored[1]:
            error = _error(dequantized(old), dequantized(value))
            found.append(Compared(name, tuple(shape_of(value)), stored, (_bytes(old), _bytes(value)), error))
    return found


def _smaller(value: ir.Value) -> bool:
    return is_quantized(value) or value.dtype in HALVES


def _constants(model: Model) -> dict[str, ir.Value]:
    """Constants of all graphs by name, less the scales of others; of several with one name, the first."""
    found: dict[str, ir.Value] = {}
    for graph in model.graphs:
        values = graph.initializers.values()
        referred = {id(other) for value in values for other in quantization_constants(value).values()}
        for value in values:
            if value.const_value is not None and id(value) not in referred:
                found.setdefault(value.name or "", value)
    return found


def _apart(found: dict[str, ir.Value], shapes: Shapes) -> dict[str, ir.Value]:
    """The constants in `found`, those joined that are apart in the other model, which has such `shapes`."""
    return {
        name: part
        for whole, value in found.items()
        for name, part in ({whole: value} if whole in shapes else parts(value, shapes)).items()
    }


def dequantized(value: ir.Value) -> np.ndarray:
    """What a constant stands for, float32: what is stored, less the zero points, times the scales.

    Raises ModelError for zero points of blocks, which nothing here writes.
    """
    assert value.const_value is not None
    stored: np.ndarray = value.const_value.numpy().astype(np.float32)
    if not is_quantized(value):
        return stored
    references = quantization_constants(value)
    if "zeroPoints" in references:
        raise ModelError(f"{value.name} has zero points by block: this reads symmetrical ones only")
    zeros = value.meta["fields"]["quantization"].zeroPoint
    if zeros is not None and "scales" not in references:
        stored -= _along(value, zeros)
    return stored * scales(value)


def scales(value: ir.Value) -> np.ndarray:
    """Those of the numbers of a quantised constant, float32, in a shape that fits theirs."""
    if (blocks := quantization_constants(value).get("scales")) is not None:
        assert blocks.const_value is not None
        found = blocks.const_value.numpy().astype(np.float32).reshape(-1)
        shape = shape_of(value)
        return np.repeat(found, math.prod(shape) // found.size).reshape(shape)
    return _along(value, value.meta["fields"]["quantization"].scale)


def _along(value: ir.Value, parameters: np.ndarray) -> np.ndarray:
    """One for all numbers, or one for each index of an axis, in a shape that fits theirs."""
    along = [1] * len(shape_of(value))
    if len(parameters) > 1:
        along[value.meta["fields"]["quantization"].quantizedDimension] = -1
    return np.asarray(parameters, np.float32).reshape(along)


def _stored(value: ir.Value) -> str:
    kind = "float32" if value.dtype == ir.DataType.FLOAT else str(value.dtype).lower()
    quantization = value.meta.get("fields", {}).get("quantization")
    size = getattr(getattr(quantization, "details", None), "blockSize", 0)
    return f"{kind} in blocks of {size}" if size else kind


def _bytes(value: ir.Value) -> int:
    """In the file, with scales and zero points."""
    assert value.const_value is not None
    size = value.const_value.nbytes
    for other in quantization_constants(value).values():
        assert other.const_value is not None
        size += other.const_value.nbytes
    quantization = value.meta.get("fields", {}).get("quantization")
    for parameter, width in (("scale", 4), ("zeroPoint", 8)):
        size += width * len(() if (one := getattr(quantization, parameter, None)) is None else one)
    return size


def _error(before: np.ndarray, after: np.ndarray) -> Error:
    error = Error()
    old, lost = before.reshape(-1), (after - before).reshape(-1)
    for start in range(0, old.size, AT_ONCE):
        error.count(old[start : start + AT_ONCE], lost[start : start + AT_ONCE])
    return error
