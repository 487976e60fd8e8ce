"""Building nodes: `op = Builder(graph, before=node)`, then `op.node("MUL", [x, y], shape)`.

Shapes and dtypes of results are not inferred by magic: each call says the shape that comes out, and the
dtype is that of the first input unless told.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from o2o.errors import ModelError
from o2o.formats.schema import CIRCLE
from o2o.model import DOMAIN, quantization_constants, shape_of


def fresh_name(graph: ir.Graph, stem: str) -> str:
    """`stem`, or `stem_1`, `stem_2`, ... : the first that no value of `graph` has.

    The names in use are gathered once a graph, and kept in its meta while it is being rewritten.
    """
    taken = graph.meta.get("names")
    if taken is None:
        taken = {value.name for value in graph.inputs} | set(graph.initializers)
        taken |= {value.name for node in graph for value in node.outputs}
        graph.meta["names"] = taken
    name, count = stem, 0
    while name in taken:
        count += 1
        name = f"{stem}_{count}"
    taken.add(name)
    return name


def add_constant(graph: ir.Graph, array: np.ndarray, name: str) -> ir.Value:
    """A new constant of `graph` with the numbers of `array`, under `name` or one like it."""
    return add_tensor(graph, ir.Tensor(np.ascontiguousarray(array).reshape(array.shape)), name)


def add_tensor(graph: ir.Graph, tensor: ir.TensorProtocol, name: str) -> ir.Value:
    """A new constant of `graph` that is `tensor`, under `name` or one like it."""
    tensor.name = fresh_name(graph, name)
    shape, type_ = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
    value = ir.Value(name=tensor.name, shape=shape, type=type_, const_value=tensor)
    graph.register_initializer(value)
    return value


@functools.cache
def _default_options(op_type: str) -> dict[str, Any]:
    """All options of an operator at their defaults, so that a node built here looks like one read."""
    table = CIRCLE.options_table(op_type)
    fields = vars(CIRCLE.table(table)()) if table is not None else {}
    return {name: value for name, value in fields.items() if isinstance(value, (bool, int, float))}


class Builder:
    """Puts new nodes in front of `before` in `graph`, or at its end.

    `prefix` starts the names of all that is built, so that a reader of the graph sees where it comes from.
    """

    def __init__(self, graph: ir.Graph, before: ir.Node | None = None, prefix: str = "") -> None:
        self.graph = graph
        self.before = before
        self.prefix = prefix

    def constant(self, array: np.ndarray | Sequence[int] | float, name: str, dtype: Any = None) -> ir.Value:
        return add_constant(self.graph, np.asarray(array, dtype), f"{self.prefix}{name}")

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        shape: Sequence[int],
        dtype: ir.DataType | None = None,
        name: str | None = None,
        **attributes: Any,
    ) -> ir.Value:
        """A node with one output of `shape`, which is returned."""
        if dtype is None:
            dtype = next(value.dtype for value in inputs if value is not None)
        output = ir.Value(
            name=self.fresh(name or op_type.lower()),
            shape=ir.Shape(shape),
            type=ir.TensorType(dtype) if dtype is not None else None,
        )
        options = {**_default_options(op_type), **attributes}
        if op_type == "CAST" and inputs[0] is not None:
            for option, kind in (("inDataType", inputs[0].dtype), ("outDataType", dtype)):
                if kind is not None:
                    options[option] = CIRCLE.dtype_codes[kind]
        node = ir.Node(
            DOMAIN,
            op_type,
            inputs,
            [ir.convenience.convert_attribute(key, item) for key, item in options.items()],
            outputs=[output],
        )
        self.add(node)
        return output

    def add(self, node: ir.Node) -> None:
        """Put `node`, made elsewhere, in its place."""
        if self.before is None:
            self.graph.append(node)
        else:
            self.graph.insert_before(self.before, node)

    def fresh(self, name: str) -> str:
        """A name for a new value."""
        return fresh_name(self.graph, f"{self.prefix}{name}")

    def slice(self, x: ir.Value, begin: Sequence[int], size: Sequence[int], name: str) -> ir.Value:
        """SLICE: `size` of `x` from `begin` on."""
        ends = (self.constant(numbers, f"{name}_{end}", np.int32) for end, numbers in
                (("begin", begin), ("size", size)))  # fmt: skip
        return self.node("SLICE", [x, *ends], size, name=name)

    def reshape(self, x: ir.Value, shape: Sequence[int], name: str | None = None) -> ir.Value:
        """RESHAPE to `shape`; `x` itself when it has that shape."""
        if shape_of(x) == tuple(shape):
            return x
        to = self.constant(np.asarray(shape, np.int32), f"{name or 'reshape'}_shape")
        return _moved(x, self.node("RESHAPE", [x, to], shape, name=name, newShape=list(shape)))

    def transpose(self, x: ir.Value, axes: Sequence[int], name: str | None = None) -> ir.Value:
        """TRANSPOSE: axis i of the result is axis `axes[i]` of `x`; `x` itself when nothing moves."""
        if list(axes) == list(range(len(axes))):
            return x
        permutation = self.constant(np.asarray(axes, np.int32), f"{name or 'transpose'}_axes")
        shape = shape_of(x)
        return _moved(x, self.node("TRANSPOSE", [x, permutation], [shape[axis] for axis in axes], name=name))


def _moved(x: ir.Value, y: ir.Value) -> ir.Value:
    """`y`, which holds the numbers of `x` in other places, made to stand for the same. Raises ModelError."""
    quantization = x.meta.get("fields", {}).get("quantization")
    if quantization is not None:
        if quantization_constants(x) or (quantization.scale is not None and len(quantization.scale) > 1):
            raise ModelError(f"{x.name} is quantised by channel or by block: its axes cannot be moved")
        y.meta["fields"] = {"quantization": quantization}
    return y
