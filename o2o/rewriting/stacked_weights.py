"""Weight matrices stacked by rows into one constant, and the parts of such a constant.

The name of a stacked constant is the names of its parts, joined by `+`; only this module reads or writes such
names. A constant counts as stacked only if the shapes of its parts add up to its own shape.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from o2o.formats.concatenated_tensor import ConcatenatedColumns, ConcatenatedTensor
from o2o.formats.tensors import SourceTensor, constant, is_quantized
from o2o.model import quantization_constants, shape_of
from o2o.rewriting.matchers import constant_ints, producer_of

_SEPARATOR = "+"
Shapes = Mapping[str, tuple[int, ...]]
"""The shape of each unstacked matrix, by name."""


def stacked_name(names: Iterable[str]) -> str:
    """Return the name of the constant that stacks the matrices `names`, in order.

    Args:
        names: The names of the parts, in order.

    Returns:
        The name.
    """
    return _SEPARATOR.join(names)


def part_names(name: str) -> list[str]:
    """Return the names of the matrices that the constant `name` stacks; `name` alone if it is not stacked.

    Args:
        name: The name of a constant.

    Returns:
        One or more names.
    """
    return name.split(_SEPARATOR)


def stack_weights(graph: ir.Graph, values: Sequence[ir.Value], axis: int = 0) -> ir.Value | None:
    """Add a constant with the rows of several matrices, one below the other, or with their columns.

    Args:
        graph: The graph that gets the constant.
        values: Constants [rows, D] of one dtype and one quantization scheme.
        axis: 0 to stack rows; 1 to stack the columns of matrices that are not quantized.

    Returns:
        The constant [sum of rows, D] or [D, sum of columns], stored and quantized as its parts are. None if
        they do not fit.
    """
    stacked_type = ConcatenatedTensor if axis == 0 else ConcatenatedColumns
    tensors = [value.const_value for value in values if value.const_value is not None]
    fields = [value.meta.get("fields", {}) for value in values]
    references = [quantization_constants(value) for value in values]
    if len(tensors) < len(values) or not stacked_type.fit(tensors):
        return None
    if any(tensor.dtype != value.dtype for tensor, value in zip(tensors, values, strict=True)):
        return None
    if any(one.keys() - {"quantization"} for one in fields):
        return None
    if any(one.keys() != references[0].keys() for one in references):
        return None
    quantization = _stacked_quantization([one.get("quantization") for one in fields])
    if quantization is False:
        return None
    stacked_references = {}
    for key in references[0]:
        stacked = stack_weights(graph, [one[key] for one in references])
        if stacked is None:
            return None
        stacked_references[key] = stacked
    tensor = stacked_type(stacked_name(value.name or "" for value in values), tensors)
    if (existing := graph.initializers.get(tensor.name or "")) is not None:
        return existing
    value = _constant_value(tensor, quantization, stacked_references)
    graph.register_initializer(value)
    return value


def unstack(value: ir.Value, shapes: Shapes) -> dict[str, ir.Value]:
    """Split a stacked constant.

    Args:
        value: A constant.
        shapes: The shapes of the matrices that it may stack.

    Returns:
        The parts by name, in order. `value` alone if it stacks none of `shapes`.
    """
    if not (rows := _rows(value, shapes)):
        return {value.name or "": value}
    result, start = {}, 0
    for name, count in rows.items():
        result[name] = _take_rows(value, start, count, name)
        start += count
    return result


def stacked_part_of(node: ir.Node, shapes: Shapes) -> tuple[ir.Value, str] | None:
    """Return the part of a stacked matrix whose product a SLICE selects.

    Args:
        node: Any node.
        shapes: The shapes of the matrices that may be stacked.

    Returns:
        The input that is multiplied, and the name of the part. None if `node` takes no such slice.
    """
    product = producer_of(node.inputs[0], "FULLY_CONNECTED") if node.op_type == "SLICE" else None
    begin = constant_ints(node.inputs[1]) if product is not None else None
    if product is None or not begin or product.inputs[0] is None or product.inputs[1] is None:
        return None
    start = 0
    for name, count in _rows(product.inputs[1], shapes).items():
        if start == begin[-1] and count == shape_of(node.outputs[0])[-1]:
            return product.inputs[0], name
        start += count
    return None


def is_stacked(value: ir.Value, shapes: Shapes) -> bool:
    """Whether the constant `value` stacks matrices of `shapes`.

    Args:
        value: A constant.
        shapes: The shapes of the matrices that it may stack.

    Returns:
        True if their rows add up.
    """
    return bool(_rows(value, shapes))


def _rows(value: ir.Value, shapes: Shapes) -> dict[str, int]:
    """The number of rows of each part of `value`, in order; empty if the shapes do not add up."""
    names = part_names(value.name or "")
    rows = {name: shapes[name][0] for name in names if name in shapes}
    return rows if len(rows) == len(names) > 1 and sum(rows.values()) == shape_of(value)[0] else {}


def _take_rows(value: ir.Value, start: int, rows: int, name: str) -> ir.Value:
    """A constant of `rows` rows of `value`, from row `start`."""
    tensor = value.const_value
    assert tensor is not None
    total, *inner = tensor.shape.numpy()
    shape, width = (rows, *inner), tensor.nbytes // total
    if isinstance(tensor, SourceTensor):
        span = replace(tensor.span, start=tensor.span.start + start * width, size=rows * width)
        part: ir.TensorProtocol = SourceTensor(tensor.source, span, tensor.dtype, shape, name)
    else:
        raw = np.frombuffer(tensor.tobytes(), np.uint8)[start * width : (start + rows) * width]
        part = constant(raw, tensor.dtype, shape, name)
    quantization = value.meta.get("fields", {}).get("quantization")
    if is_quantized(value) and quantization.scale is not None and len(quantization.scale) > 1:
        quantization = copy.copy(quantization)
        for field in ("scale", "zeroPoint"):
            setattr(quantization, field, getattr(quantization, field)[start : start + rows])
    references = {}
    for key, other in quantization_constants(value).items():
        references[key] = _take_rows(other, start, rows, f"{name}_{key}")
    return _constant_value(part, quantization, references)


def _constant_value(
    tensor: ir.TensorProtocol, quantization: Any, references: Mapping[str, ir.Value]
) -> ir.Value:
    shape, type_ = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
    value = ir.Value(name=tensor.name, shape=shape, type=type_, const_value=tensor)
    if quantization is not None:
        value.meta["fields"] = {"quantization": quantization}
    if references:
        value.meta["quantization_constants"] = dict(references)
    return value


def _stacked_quantization(quantizations: Sequence[Any]) -> Any:
    """The quantization of all rows; None if there is none; False if the parts' do not fit together.

    Scales by row fit, and so do scales by blocks of one size.
    """
    first = quantizations[0]
    if any((one is None) != (first is None) for one in quantizations):
        return False
    if first is None:
        return None
    if any((one.details is None) != (first.details is None) for one in quantizations):
        return False
    if first.details is not None:
        sizes = {getattr(one.details, "blockSize", None) for one in quantizations}
        return first if len(sizes) == 1 else False
    if any(one.scale is None or one.quantizedDimension != 0 or len(one.scale) < 2 for one in quantizations):
        return False
    stacked = copy.copy(first)
    stacked.scale = np.concatenate([one.scale for one in quantizations])
    stacked.zeroPoint = np.concatenate([one.zeroPoint for one in quantizations])
    return stacked
