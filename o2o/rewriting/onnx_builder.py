"""Construction of nodes in a graph of any format: `builder_for(graph).reshape(x, [4, 1])`.

A rewrite that only moves or converts numbers asks for a builder here, and works on Circle, TFLite and ONNX.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from o2o.model import DOMAIN
from o2o.rewriting.builder import Builder

_SHAPE_IS_OPERAND = 5
"""The first opset in which the shape of Reshape is an operand."""


def builder_for(graph: ir.Graph, before: ir.Node | None = None, prefix: str = "") -> Builder:
    """Return a builder of the graph's format.

    Args:
        graph: The graph.
        before: New nodes stand in front of this one. None: at the end of the graph.
        prefix: Start of every new name.

    Returns:
        The builder.
    """
    is_onnx = bool(graph.opset_imports) and DOMAIN not in graph.opset_imports
    return (OnnxBuilder if is_onnx else Builder)(graph, before, prefix)


class OnnxBuilder(Builder):
    """Inserts ONNX nodes into a graph."""

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        shape: Sequence[Any],
        dtype: ir.DataType | None = None,
        name: str | None = None,
        **attributes: Any,
    ) -> ir.Value:
        """Insert a node with one output.

        Args:
            op_type: An operator of ONNX's own domain.
            inputs: Its operands; None for one that is absent.
            shape: The shape of the result, whose dimensions may be symbolic.
            dtype: The dtype of the result. None: as the first operand.
            name: The name of the result, made unique. None: the operator in lower case.
            **attributes: Its attributes.

        Returns:
            The result.
        """
        output = self.result(op_type, inputs, shape, dtype, name)
        options = [ir.convenience.convert_attribute(key, item) for key, item in attributes.items()]
        self.add(ir.Node("", op_type, inputs, options, outputs=[output], name=output.name))
        return output

    def reshape(self, x: ir.Value, shape: Sequence[int], name: str | None = None) -> ir.Value:
        """See `Builder.reshape`."""
        if x.shape is not None and list(x.shape) == list(shape):
            return x
        if self.graph.opset_imports.get("", _SHAPE_IS_OPERAND) < _SHAPE_IS_OPERAND:
            result = self.node("Reshape", [x], shape, name=name)
            node = result.producer()
            assert node is not None
            node.attributes["shape"] = ir.AttrInt64s("shape", list(shape))
            return result
        to = self.constant(np.asarray(shape, np.int64), f"{name or 'reshape'}_shape")
        return self.node("Reshape", [x, to], shape, name=name)

    def transpose(self, x: ir.Value, axes: Sequence[int], name: str | None = None) -> ir.Value:
        """See `Builder.transpose`."""
        if list(axes) == list(range(len(axes))):
            return x
        dims = list(x.shape) if x.shape is not None else [None] * len(axes)
        return self.node("Transpose", [x], [dims[axis] for axis in axes], name=name, perm=list(axes))

    def cast(self, x: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
        """See `Builder.cast`."""
        return self.node("Cast", [x], list(x.shape or ()), dtype, name, to=int(dtype.value))
