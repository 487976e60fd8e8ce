"""Cache buckets of ONNX decoders: copies of a decode graph over fewer cache rows.

The proof is that of Circle (`o2o.rewriting.cache_buckets`). It reads the raised graph, which computes the
same. In the ONNX graph, caches and what is computed from them get fewer rows. A mask, or another operand that
depends on the position alone, is computed as before. Its first columns are taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import onnx
import onnx.shape_inference
import onnx_ir as ir

from o2o.errors import ModelError
from o2o.formats.onnx_writer import decoded_header
from o2o.formats.tensors import constant_array, is_constant
from o2o.model import Model, Signature, inner_graphs, operands, shape_of
from o2o.operators.onnx_shape_inference import infer_shapes
from o2o.raising.graphs import raise_graph
from o2o.rewriting.builder import add_constant
from o2o.rewriting.cache_buckets import Rows, copied, follow_rows, prove_hidden
from o2o.rewriting.dead_code_elimination import remove_dead_constants, remove_dead_nodes
from o2o.rewriting.matchers import fail
from o2o.rewriting.onnx_builder import OnnxBuilder

_SHAPE_OPERAND = {"Reshape": 1, "Expand": 1}
"""Operators with an operand that holds the shape of the result."""


def add_onnx_cache_buckets(model: Model, signature: Signature, capacities: Sequence[int]) -> None:
    """Add a copy of a signature, named `NAME_CAPACITY`, for each smaller capacity. All share their weights.

    Args:
        model: An ONNX model. Gets the new graphs and signatures.
        signature: It reads one token. Its caches have fixed shapes and roles.
        capacities: Numbers of rows, each below `most_rows`.

    Raises:
        MatchFailure: The graph cannot be proven to compute the same with fewer rows.
        ModelError: An operator is unknown, or a dimension is symbolic.
    """
    graph = signature.graph
    if any(any(True for _ in inner_graphs(node)) for node in graph):
        fail(f"{signature.name} has branches or loops: fix.shape.py removes those that are constant")
    if any(value.shape is None for node in graph for value in node.outputs):
        infer_shapes(model)
    rows = _rows(graph, capacities)
    is_right = _wrong_shape(model, signature) is None
    for capacity in capacities:
        copy, copies = copied(graph)
        _shorten(copy, {copies[value]: axis for value, axis in rows.items()}, capacity)
        inputs, outputs = (
            {name: copies[value] for name, value in values.items()}
            for values in (signature.inputs, signature.outputs)
        )
        copy.name = f"{graph.name or signature.name}_{capacity}"
        bucket = Signature(f"{signature.name}_{capacity}", copy, inputs, outputs)
        if is_right and (reason := _wrong_shape(model, bucket)) is not None:
            raise ModelError(f"{bucket.name}: an operator depends on the number of cache rows: {reason}")
        model.graphs.append(copy)
        model.signatures.append(bucket)


def _rows(graph: ir.Graph, capacities: Sequence[int]) -> Rows:
    """The ONNX values that hold cache rows, and the axis, after the proof."""
    raised = raise_graph(graph)
    if raised.unsupported:
        first = raised.unsupported[0]
        fail(f"{first.node.op_type} has no counterpart: {first.reason}", first.node.outputs[0])
    dependent = _dependent(raised.graph)
    rows = follow_rows(raised.graph, lambda value: value not in dependent and value in raised.origins)
    if not rows:
        fail("it has no KV caches in its contract")
    prove_hidden(raised.graph, rows, capacities)
    return {
        value: rows[twin] for value, twin in raised.values.items() if twin in rows and value.graph is graph
    }


def _dependent(graph: ir.Graph) -> set[ir.Value]:
    """The caches, and all values that are computed from them."""
    values = {value for value in graph.inputs if (role := value.meta.get("role")) and role.is_cache}
    for node in graph:
        if any(value in values for value in operands(node)):
            values.update(node.outputs)
    return values


def _shorten(graph: ir.Graph, rows: Rows, capacity: int) -> None:
    """Cut the row axis of each value of `rows` to `capacity`."""
    dependent = _dependent(graph)
    cut: dict[ir.Value, ir.Value] = {}
    for node in list(graph):
        if not dependent.intersection(node.outputs):
            continue
        for index, value in enumerate(node.inputs):
            if value is not None and value in rows and value not in dependent:
                if value not in cut:
                    cut[value] = _first(graph, node, value, rows[value], capacity)
                node.replace_input_with(index, cut[value])
    for value, axis in rows.items():
        if value not in dependent:
            continue
        shape = list(shape_of(value))
        shape[axis] = min(shape[axis], capacity)
        value.shape = ir.Shape(shape)
        producer = value.producer()
        if (
            producer is not None
            and producer.domain == ""
            and (operand := _SHAPE_OPERAND.get(producer.op_type)) is not None
        ):
            constant = add_constant(graph, np.array(shape, np.int64), f"{value.name}_shape")
            producer.replace_input_with(operand, constant)
    remove_dead_nodes(graph)
    remove_dead_constants(graph)


def _first(graph: ir.Graph, before: ir.Node, value: ir.Value, axis: int, capacity: int) -> ir.Value:
    """The first rows of a value that does not depend on caches."""
    shape = list(shape_of(value))
    if shape[axis] <= capacity:
        return value
    if is_constant(value) and (array := constant_array(value)) is not None:
        return add_constant(graph, array.take(range(capacity), axis), f"{value.name}_{capacity}")
    shape[axis] = capacity
    op = OnnxBuilder(graph, before=before, prefix=f"{value.name}_")
    numbers = {"start": 0, "end": capacity, "axis": axis}
    bounds = [op.constant(np.array([number]), name) for name, number in numbers.items()]
    return op.node("Slice", [value, *bounds], shape, name=str(capacity))


def _wrong_shape(model: Model, signature: Signature) -> str | None:
    """What ONNX's shape inference says against the shapes of a graph; None if they agree."""
    alone = replace(model, graphs=[signature.graph], signatures=[signature])
    try:
        decoded_header(alone, partial(onnx.shape_inference.infer_shapes, strict_mode=True, data_prop=True))
    except onnx.shape_inference.InferenceError as error:
        return " ".join(str(error).split())[:200]
    return None
