"""Builder of an ONNX graph: nodes in order, each constant once, unique names.

The caller gives the shape of every result. The tests compare these with ONNX's shape inference.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

CONTRIB = "com.microsoft"  # ONNX Runtime's own operators
Dim = int | str
INT64, INT32, FLOAT, BOOL = (getattr(ir.DataType, name) for name in ("INT64", "INT32", "FLOAT", "BOOL"))


class OnnxBuilder:
    """The nodes and constants of a graph under construction."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = []
        self._names: set[str] = set()
        self._constants: dict[Hashable, ir.Value] = {}

    def fresh(self, stem: str) -> str:
        """Return an unused name.

        Args:
            stem: The preferred name.

        Returns:
            `stem`, or `stem_1`, `stem_2`, ...
        """
        name, count = stem, 0
        while name in self._names:
            count += 1
            name = f"{stem}_{count}"
        self._names.add(name)
        return name

    def value(self, name: str, dtype: ir.DataType, shape: Sequence[Dim]) -> ir.Value:
        """Return a new value that has no producer yet.

        Args:
            name: The preferred name.
            dtype: Its dtype.
            shape: Its shape; names stand for unknown sizes.

        Returns:
            The value.
        """
        return ir.Value(name=self.fresh(name), shape=ir.Shape(shape), type=ir.TensorType(dtype))

    def constant(
        self, numbers: np.ndarray | Sequence[int] | float, name: str, dtype: Any = np.int64
    ) -> ir.Value:
        """Return a small constant. Equal ones are shared.

        Args:
            numbers: Its elements.
            name: The preferred name.
            dtype: A numpy dtype.

        Returns:
            The constant.
        """
        array = np.ascontiguousarray(np.asarray(numbers, dtype)).reshape(np.shape(numbers))
        key = array.dtype.str, array.shape, array.tobytes()
        return self.constant_once(key, lambda: ir.Tensor(array), name)

    def constant_once(self, key: Hashable, make: Callable[[], Any], name: str) -> ir.Value:
        """Return the constant of a key, and create it at the first call.

        Args:
            key: Equal keys mean equal constants.
            make: Creates the tensor.
            name: The preferred name.

        Returns:
            The constant.
        """
        if key not in self._constants:
            tensor = make()
            tensor.name = self.fresh(name)
            type_ = ir.TensorType(tensor.dtype)
            shape = ir.Shape(tensor.shape.numpy())
            value = ir.Value(name=tensor.name, shape=shape, type=type_, const_value=tensor)
            self.constants.append(value)
            self._constants[key] = value
        return self._constants[key]

    def add(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        outputs: Sequence[ir.Value | None],
        domain: str = "",
        **attributes: Any,
    ) -> None:
        """Append a node.

        Args:
            op_type: Its operator.
            inputs: Its operands; None for an optional one that is absent.
            outputs: Its results; None for an optional one that is absent.
            domain: The operator's domain.
            **attributes: Its attributes.
        """
        results = [ir.Value(name="") if value is None else value for value in outputs]
        operands = list(inputs)
        while operands and operands[-1] is None:
            operands.pop()
        converted = ir.convenience.convert_attributes(attributes)
        self.nodes.append(
            ir.Node(domain, op_type, operands, converted, outputs=results, name=results[0].name)
        )

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        shape: Sequence[Dim],
        dtype: ir.DataType | None = None,
        name: str = "",
        domain: str = "",
        **attributes: Any,
    ) -> ir.Value:
        """Append a node with one result.

        Args:
            op_type: Its operator.
            inputs: Its operands; None for an optional one that is absent.
            shape: The shape of the result; names stand for unknown sizes.
            dtype: The dtype of the result; None for the dtype of the first operand.
            name: The preferred name of the result.
            domain: The operator's domain.
            **attributes: Its attributes.

        Returns:
            The result.
        """
        if dtype is None:
            dtype = next(value.dtype for value in inputs if value is not None)
        assert dtype is not None
        output = self.value(name or op_type, dtype, shape)
        self.add(op_type, inputs, [output], domain, **attributes)
        return output

    def reshape(self, x: ir.Value, shape: Sequence[Dim], name: str = "") -> ir.Value:
        """Append a Reshape, instead of those that `x` comes from.

        Args:
            x: The operand.
            shape: The new shape, with at most one unknown size.
            name: The preferred name of the result.

        Returns:
            The result; `x`, or what it is a Reshape of, if that has the shape.
        """
        stem = name or f"{x.name}/reshaped"
        while dims(x) != list(shape) and (source := x.producer()) is not None and source.op_type == "Reshape":
            assert source.inputs[0] is not None
            x = source.inputs[0]
        if dims(x) == list(shape):
            return x
        target = [-1 if isinstance(dim, str) else dim for dim in shape]
        return self.node("Reshape", [x, self.constant(target, "shape")], shape, name=stem)

    def transpose(self, x: ir.Value, axes: Sequence[int], name: str = "") -> ir.Value:
        """Append a Transpose.

        Args:
            x: The operand.
            axes: Axis i of the result is axis `axes[i]` of `x`.
            name: The preferred name of the result.

        Returns:
            The result.
        """
        shape = [dims(x)[axis] for axis in axes]
        return self.node("Transpose", [x], shape, name=name or f"{x.name}/transposed", perm=list(axes))


def dims(value: ir.Value) -> list[Dim]:
    """Return the shape of a value.

    Args:
        value: An ONNX value.

    Returns:
        A number for each axis, or the name of an unknown size.
    """
    assert value.shape is not None
    return [dim if isinstance(dim, int) else str(dim.value) for dim in value.shape]
