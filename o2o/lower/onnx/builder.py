"""Building an ONNX graph: nodes in order, constants once, names that are free.

Shapes of results are said by who builds them, and checked against ONNX's own inference by the tests.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

CONTRIB = "com.microsoft"  # ONNX Runtime's own operators
Dim = int | str
INT64, INT32, FLOAT, BOOL = (getattr(ir.DataType, name) for name in ("INT64", "INT32", "FLOAT", "BOOL"))


class Emitter:
    """The nodes and constants of a graph to be."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = []
        self._names: set[str] = set()
        self._known: dict[Hashable, ir.Value] = {}

    def fresh(self, stem: str) -> str:
        """`stem`, or `stem_1`, `stem_2`, ...: the first that nothing has."""
        name, count = stem, 0
        while name in self._names:
            count += 1
            name = f"{stem}_{count}"
        self._names.add(name)
        return name

    def value(self, name: str, dtype: ir.DataType, shape: Sequence[Dim]) -> ir.Value:
        """A value that no node makes yet."""
        return ir.Value(name=self.fresh(name), shape=ir.Shape(shape), type=ir.TensorType(dtype))

    def constant(
        self, numbers: np.ndarray | Sequence[int] | int, name: str, dtype: Any = np.int64
    ) -> ir.Value:
        """Small numbers; those that are the same are one constant."""
        array = np.ascontiguousarray(np.asarray(numbers, dtype)).reshape(np.shape(numbers))
        key = array.dtype.str, array.shape, array.tobytes()
        return self.once(key, lambda: ir.Tensor(array), name)

    def once(self, key: Hashable, make: Any, name: str) -> ir.Value:
        """The constant under `key`: the tensor that `make` gives, at the first call."""
        if key not in self._known:
            tensor = make()
            tensor.name = self.fresh(name)
            type_ = ir.TensorType(tensor.dtype)
            shape = ir.Shape(tensor.shape.numpy())
            value = ir.Value(name=tensor.name, shape=shape, type=type_, const_value=tensor)
            self.constants.append(value)
            self._known[key] = value
        return self._known[key]

    def add(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        outputs: Sequence[ir.Value | None],
        domain: str = "",
        **attributes: Any,
    ) -> None:
        """A node that makes these `outputs`; None for one that is left out."""
        made = [ir.Value(name="") if value is None else value for value in outputs]
        given = list(inputs)
        while given and given[-1] is None:
            given.pop()
        told = ir.convenience.convert_attributes(attributes)
        self.nodes.append(ir.Node(domain, op_type, given, told, outputs=made, name=made[0].name))

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
        """A node with one output of `shape`, which is returned; its dtype that of the first input."""
        if dtype is None:
            dtype = next(value.dtype for value in inputs if value is not None)
        assert dtype is not None
        output = self.value(name or op_type, dtype, shape)
        self.add(op_type, inputs, [output], domain, **attributes)
        return output

    def reshape(self, x: ir.Value, shape: Sequence[Dim], name: str = "") -> ir.Value:
        """`x` in `shape`, of which at most one number is not known; `x` itself when it is that."""
        if dims(x) == list(shape):
            return x
        target = [-1 if isinstance(dim, str) else dim for dim in shape]
        return self.node(
            "Reshape", [x, self.constant(target, "shape")], shape, name=name or f"{x.name}/reshaped"
        )

    def transpose(self, x: ir.Value, axes: Sequence[int], name: str = "") -> ir.Value:
        """Axis i of the result is axis `axes[i]` of `x`."""
        shape = [dims(x)[axis] for axis in axes]
        return self.node("Transpose", [x], shape, name=name or f"{x.name}/transposed", perm=list(axes))


def dims(value: ir.Value) -> list[Dim]:
    """The shape of `value`: numbers, and names of those that are not known."""
    assert value.shape is not None
    return [dim if isinstance(dim, int) else str(dim.value) for dim in value.shape]
