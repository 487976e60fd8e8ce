"""Constants of the same name in two models: they hold the same numbers, or these within a rounding step.

A run reads few rows of an embedding table. This comparison reads all.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from o2o.errors import ModelError
from o2o.formats.tensors import chunks, is_constant, is_quantized, storage_key
from o2o.model import dtype_name, quantization_constants
from o2o.quantization.compare import dequantized, scales

CLIPPED_STEPS = {8: 0.0, 4: 1.5, 2: 1.5}
"""By bits: how many steps the largest number may be beyond the range (`o2o.quantization.schemes`)."""
LARGEST_ERRORS = {8: 0.005, 4: 0.2, 2: 0.7}
"""By bits: the largest error of a quantized row, as a share of its largest number."""
FLOAT_ERRORS = {ir.DataType.FLOAT16: 2.0**-10, ir.DataType.BFLOAT16: 2.0**-7}
"""By dtype: the largest relative error of a rounded number."""
SMALLEST = 1e-6
"""Smaller errors do not count: float16 rounds such numbers to multiples of 6e-8."""


def refuse_changed_constants(label: str, old: ir.Graph, new: ir.Graph) -> None:
    """Compare the constants that two graphs have under the same names.

    Args:
        label: The signature's name, for messages.
        old: A graph of the original.
        new: The graph of the result that derives from it.

    Raises:
        ModelError: A constant has other numbers; the message names it.
    """
    for name, value in new.initializers.items():
        before = old.initializers.get(name)
        if before is None or not (is_constant(before) and is_constant(value)):
            continue
        difference = _difference(before, value)
        if difference is not None:
            raise ModelError(
                f"--check: constant {name} of {label} has other numbers than before: {difference}"
            )


def replace_rounded_constants(old: ir.Graph, new: ir.Graph) -> list[str]:
    """Give the constants of a graph the numbers that quantized constants of the same name stand for.

    Args:
        old: A graph of the original, changed in place.
        new: The graph of the result that derives from it.

    Returns:
        The names of the constants that were replaced.
    """
    names = []
    for name, value in new.initializers.items():
        before = old.initializers.get(name)
        if before is None or not (is_constant(before) and is_constant(value)):
            continue
        assert before.dtype is not None
        assert before.const_value is not None
        assert value.const_value is not None
        is_rounded = before.dtype != value.dtype and before.dtype.is_floating_point()
        if is_rounded and before.const_value.shape == value.const_value.shape:
            before.const_value = ir.Tensor(dequantized(value).astype(before.dtype.numpy()), name=name)
            names.append(name)
    return names


def _difference(old: ir.Value, new: ir.Value) -> str | None:
    assert old.const_value is not None
    assert new.const_value is not None
    if dtype_name(old) == dtype_name(new):
        if old.const_value.shape != new.const_value.shape or old.const_value.nbytes != new.const_value.nbytes:
            return None  # reshaped, cut or padded: another constant
        if storage_key(old.const_value) != storage_key(new.const_value) and _bytes(old) != _bytes(new):
            return "their bytes differ"
        if is_quantized(old) and is_quantized(new):
            for kind, before, after in zip(
                ("scales", "zero points"), _parameters(old), _parameters(new), strict=True
            ):
                if not np.array_equal(before, after):
                    return f"their {kind} differ"
        return None
    if old.dtype is None or new.dtype is None or is_quantized(old) or not old.dtype.is_floating_point():
        return None
    if old.const_value.shape.numpy() != new.const_value.shape.numpy():
        return None
    return _rounding_difference(old, new)


def _parameters(value: ir.Value) -> tuple[np.ndarray, np.ndarray]:
    """Scales and zero points as they are stored: by row or block, empty where there are none."""
    quantization = value.meta["fields"]["quantization"]
    stored = []
    for field, name in (("scale", "scales"), ("zeroPoint", "zeroPoints")):
        blocks = quantization_constants(value).get(name)
        array = getattr(quantization, field) if blocks is None else blocks.const_value.numpy()  # type: ignore
        stored.append(np.asarray(() if array is None else array))
    return stored[0], stored[1]


def _bytes(value: ir.Value) -> bytes:
    assert value.const_value is not None
    return b"".join(bytes(chunk) for chunk in chunks(value.const_value))


def _rounding_difference(old: ir.Value, new: ir.Value) -> str | None:
    """Why `new` is not `old` rounded to its dtype; None if it is."""
    assert new.dtype is not None
    assert old.const_value is not None
    if "zeroPoints" in quantization_constants(new):
        return None  # asymmetric blocks: no filter writes them
    with np.errstate(over="ignore"):  # float64
        numbers = old.const_value.numpy().astype(np.float32)
    stored = dequantized(new)
    with np.errstate(invalid="ignore"):  # infinity, as in masks, minus itself
        error = np.where(stored == numbers, np.float32(0), np.abs(stored - numbers))
    if is_quantized(new):
        steps = 0.5 + CLIPPED_STEPS.get(new.dtype.bitwidth, 0.0)
        step = scales(new)
        allowed: np.ndarray = np.broadcast_to(step * np.float32(steps * 1.01), numbers.shape)
        axis = None if step.size == 1 else -1
        largest = np.abs(numbers).max(axis, keepdims=True, initial=0)
        allowed = np.minimum(allowed, largest * LARGEST_ERRORS.get(new.dtype.bitwidth, 1.0))
    elif new.dtype in FLOAT_ERRORS:
        allowed = np.abs(numbers) * FLOAT_ERRORS[new.dtype]
    else:
        return None
    wrong = ~(error <= allowed + SMALLEST)
    if not wrong.any():
        return None
    place = [int(index) for index in np.unravel_index(int(np.argmax(error - allowed)), numbers.shape)]
    return f"{dequantized(new)[tuple(place)]:.4g} stands for {numbers[tuple(place)]:.4g} at {place}"
