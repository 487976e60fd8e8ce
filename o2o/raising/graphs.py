"""The raising of one graph: each ONNX node by its rule, in order. Nothing of the ONNX graph is changed.

What depends on small constants and on shapes alone is computed at once, as `fix.shape.py` does. A node
without a rule stays in the raised graph, in its own domain. What needs the shape of its result stays too.
`raise_model` refuses such a graph. A fusion matches around these nodes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from o2o.dimension_expressions import evaluated
from o2o.errors import ModelError
from o2o.formats.tensors import LARGE, constant_array, is_constant, is_constant_node
from o2o.formats.widened_tensor import OTHER_FLOATS, WidenedTensor
from o2o.model import DOMAIN, dims_of, operands, shape_of
from o2o.raising.expansion import expansion_of
from o2o.raising.inferred_types import inferred_types
from o2o.raising.operation import NotRaised, Operation
from o2o.raising.rules import rule_of
from o2o.rewriting.builder import Builder, fresh_name
from o2o.rewriting.onnx_folding import LARGEST, is_foldable, results_of


@dataclass(frozen=True)
class Unsupported:
    """An ONNX node without a counterpart, and the reason."""

    node: ir.Node
    reason: str


@dataclass
class Raised:
    """A raised graph.

    Attributes:
        graph: The graph of builtin operators, and of ONNX nodes that stayed.
        values: The raised value of each ONNX value that has one.
        origins: The ONNX value that holds the same numbers as a raised value, for those that have one.
        unsupported: The nodes that stayed because they have no counterpart. Nodes that stayed because the
            shape of an operand is unknown are not in it.
    """

    graph: ir.Graph
    values: dict[ir.Value, ir.Value] = field(default_factory=dict)
    origins: dict[ir.Value, ir.Value] = field(default_factory=dict)
    unsupported: list[Unsupported] = field(default_factory=list)


def raise_graph(graph: ir.Graph, sizes: Mapping[str, int] | None = None, in_float32: bool = False) -> Raised:
    """Raise an ONNX graph.

    Args:
        graph: The graph; it stays as it is. Constants share their data with the result.
        sizes: Numbers of symbolic dimensions of inputs by name, if there are any. An expression of names
            follows from its names.
        in_float32: Whether float16, bfloat16 and float64 become float32: of inputs, outputs, constants and
            results.

    Returns:
        The raised graph.

    Raises:
        ModelError: An input has a symbolic dimension without a number, or no shape.
    """
    return _Raising(graph, sizes or {}, in_float32).run()


class _Raising:
    def __init__(self, graph: ir.Graph, sizes: Mapping[str, int], in_float32: bool) -> None:
        self.source, self.sizes, self.in_float32 = graph, sizes, in_float32
        raised = ir.Graph([], [], nodes=[], name=graph.name, opset_imports={DOMAIN: 1})
        values = (*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs))
        raised.meta["names"] = {value.name for value in values if value.name}
        self.own = set(values)
        self.folded: set[ir.Value] = set()
        self.result = Raised(raised)

    def run(self) -> Raised:
        raised = self.result.graph
        for value in self.source.inputs:
            if value.const_value is None:  # see `o2o.raising.models.is_input`
                raised.inputs.append(self._input(value))
        self._nodes(self.source, self.source.opset_imports)
        outputs: list[ir.Value] = []
        for value in self.source.outputs:
            output = self._value(value)
            if output in outputs or output.is_graph_input() or output.is_initializer():
                output = self._copy(output, value.name or "output")
            output.meta.update(value.meta)
            outputs.append(output)
        raised.outputs.extend(outputs)
        raised.meta.pop("names")
        return self.result

    # ---- values ----------------------------------------------------------------------------------------

    def _input(self, value: ir.Value) -> ir.Value:
        if value.shape is None:
            raise ModelError(f"the input {value.name} has no shape: fix.shape.py gives it one (--input)")
        dims = [dim if isinstance(dim, int) else evaluated(dim, self.sizes) for dim in dims_of(value) or ()]
        if None in dims:
            shape_of(value)  # raises ModelError
        kind = ir.TensorType(ir.DataType.FLOAT) if self._is_widened(value.dtype) else value.type
        raised = ir.Value(name=value.name, shape=ir.Shape(dims), type=kind)
        raised.meta.update(value.meta)
        self._assign(value, raised)
        return raised

    def _value(self, value: ir.Value) -> ir.Value:
        """The raised value; a constant is raised where it is first used."""
        raised = self.result.values.get(value)
        if raised is None:
            if value.const_value is None:
                raise ModelError(f"damaged: {value.name} is used, and no node before computes it")
            raised = self._constant(value, value.const_value)
        return raised

    def _is_widened(self, dtype: ir.DataType | None) -> bool:
        return self.in_float32 and dtype in OTHER_FLOATS

    def _constant(self, value: ir.Value, tensor: ir.TensorProtocol) -> ir.Value:
        if self._is_widened(tensor.dtype):
            tensor = WidenedTensor(tensor.name or "", tensor)
        graph, name = self.result.graph, value.name or "constant"
        if name in graph.initializers:  # of an expansion or a branch, whose names are their own
            graph.meta["names"].add(name)
            name = fresh_name(graph, name)
        shape, type_ = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
        raised = ir.Value(name=name, shape=shape, type=type_, const_value=tensor)
        raised.meta.update(value.meta)
        graph.register_initializer(raised)
        self._assign(value, raised)
        return raised

    def _assign(self, value: ir.Value, raised: ir.Value) -> None:
        self.result.values[value] = raised
        if value in self.own:
            self.result.origins.setdefault(raised, value)

    def _copy(self, x: ir.Value, name: str) -> ir.Value:
        """The numbers of `x` as the result of an operator: `x` is an input, a constant or another output."""
        op = Builder(self.result.graph)
        to = op.constant(np.asarray(shape_of(x), np.int32), f"{name}/shape")
        result = op.node("RESHAPE", [x, to], shape_of(x), name=name, newShape=list(shape_of(x)))
        if name not in self.result.graph.initializers and name not in {
            value.name for value in self.result.graph.inputs
        }:
            result.name = name
        return result

    # ---- nodes -----------------------------------------------------------------------------------------

    def _nodes(self, graph: ir.Graph, opsets: Mapping[str, int]) -> None:
        """Raise the nodes of a graph, a branch or an expansion."""
        for node in graph:
            if not is_constant_node(node) or node.outputs[0].const_value is None:
                self._node(node, opsets)

    def _node(self, node: ir.Node, opsets: Mapping[str, int]) -> None:
        values = [None if value is None else self._value(value) for value in node.inputs]
        if any(value is not None and value.shape is None for value in values):
            self._stay(node, opsets.get(node.domain, 1))
            return
        opset = opsets.get(node.domain, 1)
        if self._fold(node, values, opset) or self._inline_branch(node, values, opsets):
            return
        try:
            self._raise(node, values, opset)
        except NotRaised as reason:
            self.result.unsupported.append(Unsupported(node, str(reason)))
            self._stay(node, opset)

    def _raise(self, node: ir.Node, values: Sequence[ir.Value | None], opset: int) -> None:
        rule = rule_of(node)
        if rule is None:
            if (expansion := expansion_of(node, values, opset)) is None:
                raise NotRaised("Circle has no such operator")
            self._expand(node, values, expansion)
            return
        operation = Operation(node, values, opset, self.result.graph, self.result.values, self.in_float32)
        results = rule(operation)
        given = [results] if isinstance(results, ir.Value) else list(results)
        given += [None] * (len(node.outputs) - len(given))
        for value, result in zip(node.outputs, given, strict=False):
            if result is not None:
                self._bind(value, result)
            elif value.name and (value.uses() or value.is_graph_output()):
                operation.refuse(f"its result {value.name} is used")

    def _bind(self, value: ir.Value, raised: ir.Value) -> None:
        """Map a result, which takes the name of the ONNX value if it is new."""
        is_new = raised not in self.result.origins and raised.producer() is not None
        if is_new and value.name and value in self.own:
            raised.name = value.name
        self._assign(value, raised)

    def _expand(self, node: ir.Node, values: Sequence[ir.Value | None], body: ir.Graph) -> None:
        """Raise a node by the nodes that define it."""
        for inner, value in zip(body.inputs, values, strict=False):
            if value is not None:
                self.result.values[inner] = value
        before = len(self.result.unsupported)
        self._nodes(body, body.opset_imports)
        if (failed := self.result.unsupported[before:]) != []:
            del self.result.unsupported[before:]
            raise NotRaised("; ".join(f"{each.node.op_type} in it: {each.reason}" for each in failed))
        for outer, inner in zip(node.outputs, body.outputs, strict=False):
            if outer.name:
                self._bind(outer, self._value(inner))

    def _stay(self, node: ir.Node, opset: int) -> None:
        """Let an ONNX node stay. What its graphs use becomes an operand: no graph of it stays."""
        values = [None if value is None else self._value(value) for value in node.inputs]
        captured = [value for value in operands(node) if value not in node.inputs]
        values += [self._value(value) for value in dict.fromkeys(captured) if value in self.result.values]
        attributes = [
            item
            for item in node.attributes.values()
            if item.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        ]
        outputs = [self._unknown(value) for value in node.outputs]
        if any(value.shape is None for value in outputs):
            types = inferred_types(node, values[: len(node.inputs)], opset) or ()
            for value, (dtype, shape) in zip(outputs, types, strict=False):
                if value.shape is None and shape is not None:
                    value.shape, value.type = ir.Shape(shape), ir.TensorType(dtype)
        self.result.graph.append(ir.Node(node.domain, node.op_type, values, attributes, outputs=outputs))

    def _unknown(self, value: ir.Value) -> ir.Value:
        """The result of a node that stays, with the shape that the ONNX graph has for it."""
        dims = dims_of(value)
        known = [dim if isinstance(dim, int) else evaluated(dim, self.sizes) for dim in dims or ()]
        shape = None if dims is None or None in known else ir.Shape(known)
        raised = ir.Value(name=value.name, shape=shape, type=value.type)
        if value.name:
            self._assign(value, raised)
        return raised

    # ---- constants -------------------------------------------------------------------------------------

    def _fold(self, node: ir.Node, values: Sequence[ir.Value | None], opset: int) -> bool:
        """Compute a node whose operands are all small constants, or that asks for a shape."""
        if not is_foldable(node):
            return False
        if node.op_type in ("Shape", "Size"):
            results: list[np.ndarray] | None = [_shape_result(node, values[0])]
        else:
            if not all(value is None or self._is_small(value) for value in values) or not values:
                return False
            arrays = [None if value is None else constant_array(value) for value in values]
            results = results_of(node, arrays, opset)
        if results is None or any(result.nbytes > LARGEST for result in results):
            return False
        for value, result in zip(node.outputs, results, strict=True):
            if value.name:
                tensor = ir.Tensor(np.ascontiguousarray(result).reshape(result.shape))
                self.folded.add(self._constant(value, tensor))
        return True

    def _is_small(self, value: ir.Value) -> bool:
        """Whether a value is a constant that was computed, or a small one of the file: no weight."""
        tensor = value.const_value
        return is_constant(value) and tensor is not None and (value in self.folded or tensor.nbytes < LARGE)

    def _inline_branch(
        self, node: ir.Node, values: Sequence[ir.Value | None], opsets: Mapping[str, int]
    ) -> bool:
        """Raise the branch of an If whose condition is constant."""
        if node.op_type != "If" or node.domain != "" or values[0] is None or not is_constant(values[0]):
            return False
        condition = constant_array(values[0])
        assert condition is not None
        branch = node.attributes["then_branch" if condition.reshape(-1)[0] else "else_branch"].as_graph()
        self._nodes(branch, opsets)
        for outer, inner in zip(node.outputs, branch.outputs, strict=True):
            self._bind(outer, self._value(inner))
        return True


def _shape_result(node: ir.Node, x: ir.Value | None) -> np.ndarray:
    assert x is not None
    dims = shape_of(x)
    if node.op_type == "Size":
        return np.asarray(math.prod(dims), np.int64)
    start, end = (node.attributes.get(name) for name in ("start", "end"))
    return np.asarray(dims[start.as_int() if start else 0 : end.as_int() if end else len(dims)], np.int64)
