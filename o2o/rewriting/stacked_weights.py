"""Matrices of rows that are one matrix, and the other way round.

The name of what was joined is those of its parts, `+` between them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from o2o.formats.concatenated_tensor import ConcatenatedTensor
from o2o.formats.tensors import SourceTensor, constant, is_quantized
from o2o.model import shape_of
from o2o.rewriting.matchers import constant_ints, producer_of

AND = "+"
Shapes = Mapping[str, tuple[int, ...]]
"""Of matrices, by name."""


def join(graph: ir.Graph, values: Sequence[ir.Value]) -> ir.Value | None:
    """A new constant of `graph`: the rows of the constants `values`, one matrix below the other, stored and
    quantised as they are. None for constants that do not fit together."""
    tensors = [value.const_value for value in values if value.const_value is not None]
    fields = [value.meta.get("fields", {}) for value in values]
    scales = [value.meta.get("references", {}) for value in values]
    if len(tensors) < len(values) or not ConcatenatedTensor.fit(tensors):
        return None
    if any(tensor.dtype != value.dtype for tensor, value in zip(tensors, values, strict=True)):
        return None
    if any(one.keys() - {"quantization"} for one in fields):
        return None
    if any(one.keys() != scales[0].keys() for one in scales):
        return None
    quantization = _joined_quantization([one.get("quantization") for one in fields])
    if quantization is False:
        return None
    references = {}
    for key in scales[0]:
        found = join(graph, [keys[key] for keys in scales])
        if found is None:
            return None
        references[key] = found
    joined = ConcatenatedTensor(AND.join(value.name or "" for value in values), tensors)
    if (known := graph.initializers.get(joined.name or "")) is not None:
        return known
    value = _value(joined, quantization, references)
    graph.register_initializer(value)
    return value


def parts(value: ir.Value, shapes: Shapes) -> dict[str, ir.Value]:
    """The constants that were joined to `value`, by name, given the shape of each; `value` itself where
    nothing was, or what is known does not add up."""
    if not (rows := _rows(value, shapes)):
        return {value.name or "": value}
    found, start = {}, 0
    for name, count in rows.items():
        found[name] = _cut(value, start, count, name)
        start += count
    return found


def stacked_part_of(node: ir.Node, shapes: Shapes) -> tuple[ir.Value, str] | None:
    """What `node` is a product of, if it is a SLICE that parts what a joined matrix makes: the input, and the
    name of the matrix that was joined."""
    made = producer_of(node.inputs[0], "FULLY_CONNECTED") if node.op_type == "SLICE" else None
    begin = constant_ints(node.inputs[1]) if made is not None else None
    if made is None or not begin or made.inputs[0] is None or made.inputs[1] is None:
        return None
    start = 0
    for name, count in _rows(made.inputs[1], shapes).items():
        if start == begin[-1] and count == shape_of(node.outputs[0])[-1]:
            return made.inputs[0], name
        start += count
    return None


def is_stacked(value: ir.Value) -> bool:
    """Whether the constant `value` was made by `join`, as its name tells."""
    return AND in (value.name or "")


def _rows(value: ir.Value, shapes: Shapes) -> dict[str, int]:
    """Of those that were joined to `value` the rows, in order; empty where what is known does not add up."""
    names = (value.name or "").split(AND)
    found = {name: shapes[name][0] for name in names if name in shapes}
    return found if len(found) == len(names) > 1 and sum(found.values()) == shape_of(value)[0] else {}


def _cut(value: ir.Value, start: int, rows: int, name: str) -> ir.Value:
    """The constant that is these rows of `value`."""
    tensor = value.const_value
    assert tensor is not None
    total, *inner = tensor.shape.numpy()
    shape, width = (rows, *inner), tensor.nbytes // total
    if isinstance(tensor, SourceTensor):
        span = replace(tensor.span, start=tensor.span.start + start * width, size=rows * width)
        cut: ir.TensorProtocol = SourceTensor(tensor.source, span, tensor.dtype, shape, name)
    else:
        raw = np.frombuffer(tensor.tobytes(), np.uint8)[start * width : (start + rows) * width]
        cut = constant(raw, tensor.dtype, shape, name)
    quantization = value.meta.get("fields", {}).get("quantization")
    if is_quantized(value) and quantization.scale is not None and len(quantization.scale) > 1:
        quantization = copy.copy(quantization)
        for field in ("scale", "zeroPoint"):
            setattr(quantization, field, getattr(quantization, field)[start : start + rows])
    references = {}
    for key, other in value.meta.get("references", {}).items():
        references[key] = _cut(other, start, rows, f"{name}_{key}")
    return _value(cut, quantization, references)


def _value(tensor: ir.TensorProtocol, quantization: Any, references: Mapping[str, ir.Value]) -> ir.Value:
    shape, type_ = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
    value = ir.Value(name=tensor.name, shape=shape, type=type_, const_value=tensor)
    if quantization is not None:
        value.meta["fields"] = {"quantization": quantization}
    if references:
        value.meta["references"] = dict(references)
    return value


def _joined_quantization(told: Sequence[Any]) -> Any:
    """That of all rows; None for none; False where they do not go together: only scales by row, or by blocks
    of a row, do."""
    first = told[0]
    if any((one is None) != (first is None) for one in told):
        return False
    if first is None:
        return None
    if any((one.details is None) != (first.details is None) for one in told):
        return False
    if first.details is not None:
        return first if len({getattr(one.details, "blockSize", None) for one in told}) == 1 else False
    if any(one.scale is None or one.quantizedDimension != 0 or len(one.scale) < 2 for one in told):
        return False
    joined = copy.copy(first)
    joined.scale = np.concatenate([one.scale for one in told])
    joined.zeroPoint = np.concatenate([one.zeroPoint for one in told])
    return joined
