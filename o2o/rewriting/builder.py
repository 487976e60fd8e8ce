"""Construction of nodes: `op = Builder(graph, before=node)`, then `op.node("MUL", [x, y], shape)`.

Nothing is inferred: each call gives the shape of the result. The default dtype is the dtype of the
first operand.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from o2o.errors import ModelError
from o2o.formats.schema import CIRCLE
from o2o.model import DOMAIN, nested_graphs, quantization_constants, shape_of, unique_name


def fresh_name(graph: ir.Graph, stem: str) -> str:
    """Return the first of `stem`, `stem_1`, `stem_2`, ... that no value of `graph` has, and reserve it.

    The names in use are collected once per graph and cached in its meta.

    Args:
        graph: The graph.
        stem: The wanted name.

    Returns:
        The name.
    """
    taken: set[str] | None = graph.meta.get("names")
    if taken is None:
        taken = {value.name or "" for value in graph.inputs} | set(graph.initializers)
        taken |= {value.name or "" for node in graph for value in node.outputs}
        for node in graph:  # names of ONNX are unique across a graph and the graphs in it
            for inner in nested_graphs(node):
                taken |= {value.name or "" for value in inner.inputs} | set(inner.initializers)
                taken |= {value.name or "" for other in inner for value in other.outputs}
        graph.meta["names"] = taken
    return unique_name(stem, taken)


def add_constant(graph: ir.Graph, array: np.ndarray, name: str) -> ir.Value:
    """Add a constant with the numbers of `array` to `graph`. Its name is `name`, made unique.

    Args:
        graph: The graph.
        array: Its numbers, shape and dtype.
        name: The wanted name.

    Returns:
        The constant.
    """
    return add_tensor(graph, ir.Tensor(np.ascontiguousarray(array).reshape(array.shape)), name)


def add_tensor(graph: ir.Graph, tensor: ir.TensorProtocol, name: str) -> ir.Value:
    """Add `tensor` to `graph` as a constant. Its name is `name`, made unique.

    Args:
        graph: The graph.
        tensor: Any tensor; it is renamed.
        name: The wanted name.

    Returns:
        The constant.
    """
    tensor.name = fresh_name(graph, name)
    shape, type_ = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
    value = ir.Value(name=tensor.name, shape=shape, type=type_, const_value=tensor)
    graph.register_initializer(value)
    return value


@functools.cache
def _default_options(op_type: str) -> dict[str, Any]:
    """All options of an operator at their defaults: a built node then equals one read from a file."""
    table = CIRCLE.options_table(op_type)
    fields = vars(CIRCLE.table(table)()) if table is not None else {}
    return {name: value for name, value in fields.items() if isinstance(value, (bool, int, float))}


class Builder:
    """Inserts nodes into a graph."""

    def __init__(self, graph: ir.Graph, before: ir.Node | None = None, prefix: str = "") -> None:
        """Choose where to insert.

        Args:
            graph: The graph.
            before: New nodes stand in front of this one. None: at the end of the graph.
            prefix: Start of every new name, such as the name of the value that is replaced.
        """
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
        """Insert a node with one output.

        Args:
            op_type: The Circle operator.
            inputs: Its operands; None for one that is absent.
            shape: The shape of the result.
            dtype: The dtype of the result. None: as the first operand.
            name: The name of the result, made unique. None: the operator in lower case.
            **attributes: Options that differ from their defaults.

        Returns:
            The result.
        """
        output = self.result(op_type, inputs, shape, dtype, name)
        options = {**_default_options(op_type), **attributes}
        if op_type == "CAST" and inputs[0] is not None:
            for option, kind in (("inDataType", inputs[0].dtype), ("outDataType", output.dtype)):
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

    def result(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        shape: Sequence[Any],
        dtype: ir.DataType | None = None,
        name: str | None = None,
    ) -> ir.Value:
        """Make the output of a node that is not built yet.

        Args:
            op_type: See `node`.
            inputs: See `node`.
            shape: See `node`.
            dtype: See `node`.
            name: See `node`.

        Returns:
            A value of a unique name.
        """
        if dtype is None:
            dtype = next(value.dtype for value in inputs if value is not None)
        return ir.Value(
            name=self.fresh(name or op_type.lower()),
            shape=ir.Shape(shape),
            type=ir.TensorType(dtype) if dtype is not None else None,
        )

    def add(self, node: ir.Node) -> None:
        """Insert an existing node.

        Args:
            node: A node of no graph.
        """
        if self.before is None:
            self.graph.append(node)
        else:
            self.graph.insert_before(self.before, node)

    def fresh(self, name: str) -> str:
        """Return an unused name that starts with the prefix.

        Args:
            name: The wanted name, without the prefix.

        Returns:
            The name.
        """
        return fresh_name(self.graph, f"{self.prefix}{name}")

    def cast(self, x: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
        """Insert CAST of `x` to another dtype.

        Args:
            x: Any tensor.
            dtype: The dtype of the result.
            name: The name of the result.

        Returns:
            The converted tensor.
        """
        return self.node("CAST", [x], shape_of(x), dtype, name)

    def slice(self, x: ir.Value, begin: Sequence[int], size: Sequence[int], name: str) -> ir.Value:
        """Insert SLICE: the block of shape `size` of `x` that starts at `begin`.

        Args:
            x: Any tensor.
            begin: The first index on each axis.
            size: The shape of the block.
            name: The name of the result.

        Returns:
            The block.
        """
        bounds = [
            self.constant(bound, f"{name}_{which}", np.int32)
            for which, bound in (("begin", begin), ("size", size))
        ]
        return self.node("SLICE", [x, *bounds], size, name=name)

    def reshape(self, x: ir.Value, shape: Sequence[int], name: str | None = None) -> ir.Value:
        """Insert RESHAPE of `x` to `shape`. Returns `x` itself if it has that shape.

        Args:
            x: Any tensor.
            shape: The new shape.
            name: The name of the result.

        Returns:
            The tensor of that shape.
        """
        if shape_of(x) == tuple(shape):
            return x
        to = self.constant(np.asarray(shape, np.int32), f"{name or 'reshape'}_shape")
        return _with_quantization_of(x, self.node("RESHAPE", [x, to], shape, name=name, newShape=list(shape)))

    def transpose(self, x: ir.Value, axes: Sequence[int], name: str | None = None) -> ir.Value:
        """Insert TRANSPOSE: axis i of the result is axis `axes[i]` of `x`. Returns `x` if nothing moves.

        Args:
            x: Any tensor.
            axes: A permutation of its axes.
            name: The name of the result.

        Returns:
            The transposed tensor.
        """
        if list(axes) == list(range(len(axes))):
            return x
        permutation = self.constant(np.asarray(axes, np.int32), f"{name or 'transpose'}_axes")
        shape = shape_of(x)
        return _with_quantization_of(
            x, self.node("TRANSPOSE", [x, permutation], [shape[axis] for axis in axes], name=name)
        )


def _with_quantization_of(x: ir.Value, y: ir.Value) -> ir.Value:
    """`y`, which holds the numbers of `x` moved, with the quantization of `x`. Raises ModelError."""
    quantization = x.meta.get("fields", {}).get("quantization")
    if quantization is not None:
        if quantization_constants(x) or (quantization.scale is not None and len(quantization.scale) > 1):
            raise ModelError(f"{x.name} is quantized by channel or by block: its axes cannot be moved")
        y.meta["fields"] = {"quantization": quantization}
    return y
