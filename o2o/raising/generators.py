"""Operators that make tensors of shapes and numbers alone."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import constant_array
from o2o.model import shape_of
from o2o.raising.operation import Operation, Rules


def _constant(of: Operation) -> ir.Value:
    for name, dtype in (
        ("value_int", np.int64),
        ("value_ints", np.int64),
        ("value_float", np.float32),
        ("value_floats", np.float32),
    ):
        if name in of.node.attributes:
            return of.constant(np.asarray(of.get(name), dtype), "value")
    tensor = of.get("value")
    if tensor is None:
        of.refuse("Circle has no such constant")
    return of.constant(tensor.numpy(), "value")


def _constant_of_shape(of: Operation) -> ir.Value:
    shape, tensor = of.ints(0), of.get("value")
    number = np.zeros(1, np.float32) if tensor is None else tensor.numpy()
    value = of.constant(number.reshape(()), "value")
    return of.emit("FILL", of.indices(shape, "shape"), value, dtype=value.dtype)


def _range(of: Operation) -> ir.Value:
    """From constants, or from a computed start of as many numbers as ONNX's shape inference finds."""
    start, limit, delta = (constant_array(of.operand(index)) for index in range(3))
    x = of.operand(0)
    assert x.dtype is not None
    if start is not None and limit is not None and delta is not None:
        numbers = np.arange(start.item(), limit.item(), delta.item()).astype(x.dtype.numpy())
        return of.constant(numbers, "range")
    shape = of.node.outputs[0].shape
    if shape is None or not shape.is_static():
        of.refuse("its length depends on computed numbers")
    places = of.constant(np.arange(shape.numpy()[0]), "places", x.dtype.numpy())
    if delta is None or delta.item() != 1:
        places = of.emit("MUL", places, of.operand(2))
    return of.emit("ADD", places, x)


def _eye_like(of: Operation) -> ir.Value:
    rows, columns = shape_of(of.operand())
    dtype = ir.DataType(int(of.get("dtype", of.operand().dtype or ir.DataType.FLOAT)))
    return of.constant(np.eye(rows, columns, int(of.get("k", 0))), "eye", dtype.numpy())


RULES: Rules = {
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "EyeLike": _eye_like,
}
