"""An ONNX model of fixed shapes as a Circle model, in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from o2o.errors import ModelError
from o2o.model import Model, Signature, dims_of, dtype_name
from o2o.raising.graphs import Raised, Unsupported, raise_graph
from o2o.rewriting.common_subexpression_elimination import eliminate_common_subexpressions
from o2o.rewriting.dead_code_elimination import remove_dead_constants, remove_dead_nodes

_IR_VERSION = 10
_LISTED = 5
"""Operators that an error message names one by one."""


def raise_model(model: Model, in_float32: bool = True) -> Model:
    """Raise an ONNX model to Circle.

    Args:
        model: An ONNX model of fixed shapes; it stays as it is. Constants share their data with the result.
        in_float32: Whether float16, bfloat16 and float64 become float32. Engines have few operators of
            these.

    Returns:
        The Circle model, with the signatures, roles, metadata and history of the ONNX model.

    Raises:
        ModelError: An operator has no counterpart, or a dimension is symbolic. The message names each place.
    """
    model = _without_functions(model)
    raised = {graph: raise_graph(graph, in_float32=in_float32) for graph in model.graphs}
    failed = [(graph, each) for graph, result in raised.items() for each in result.unsupported]
    if failed:
        raise ModelError(_message(model, failed))
    if not model.signatures:
        model.add_default_signature("main")
    signatures = [_signature(signature, raised[signature.graph]) for signature in model.signatures]
    result = Model(
        "circle",
        [each.graph for each in raised.values()],
        signatures,
        metadata=list(model.metadata),
        history=list(model.history),
    )
    for graph in result.graphs:
        remove_dead_nodes(graph)
        eliminate_common_subexpressions(result, graph)
        remove_dead_constants(graph)
    return result


def as_circle(model: Model) -> Model:
    """Raise a model if it is ONNX.

    Args:
        model: A model of any format.

    Returns:
        The Circle model of an ONNX model; any other model itself.

    Raises:
        ModelError: See `raise_model`.
    """
    return raise_model(model) if model.format == "onnx" else model


def is_input(value: ir.Value) -> bool:
    """Return whether an input of an ONNX graph is one of the Circle graph.

    Args:
        value: The input.

    Returns:
        False for one with a default, which is a constant. Files of IR version 3 list weights among inputs.
    """
    return value.const_value is None


def _without_functions(model: Model) -> Model:
    """The model with its functions inlined. Its graphs stay as they are."""
    if not model.functions:
        return model
    copies = {graph: graph.clone() for graph in model.graphs}
    for copy in copies.values():
        InlinePass()(ir.Model(copy, ir_version=_IR_VERSION, functions=list(model.functions.values())))
    signatures = []
    for each in model.signatures:
        graph = copies[each.graph]
        old, new = ([*of.inputs, *of.outputs] for of in (each.graph, graph))
        pairs = dict(zip(old, new, strict=True))
        inputs, outputs = (
            {name: pairs[value] for name, value in values.items()} for values in (each.inputs, each.outputs)
        )
        signatures.append(Signature(each.name, graph, inputs, outputs))
    return Model("onnx", list(copies.values()), signatures, list(model.metadata), list(model.history))


def _signature(signature: Signature, raised: Raised) -> Signature:
    graph = raised.graph
    outputs = dict(zip(signature.outputs, graph.outputs, strict=True))
    inputs = {name: raised.values[value] for name, value in signature.inputs.items() if is_input(value)}
    return Signature(signature.name, graph, inputs, outputs)


def _message(model: Model, failed: Sequence[tuple[ir.Graph, Unsupported]]) -> str:
    counts = Counter(each.node.op_type for _, each in failed)
    first = {each.node.op_type: (graph, each) for graph, each in reversed(failed)}
    places = []
    for op_type, count in counts.items():
        more = f" and {count - 1} more" if count > 1 else ""
        places.append(f"{_place(model, *first[op_type])}{more}")
    hidden = f"; and {len(places) - _LISTED} other operators" if len(places) > _LISTED else ""
    return f"no counterpart in Circle: {'; '.join(places[:_LISTED])}{hidden}"


def _place(model: Model, graph: ir.Graph, unsupported: Unsupported) -> str:
    node = unsupported.node
    operands = ", ".join(_described(value) for value in node.inputs if value is not None)
    domain = f"{node.domain}." if node.domain else ""
    opset = graph.opset_imports.get(node.domain)
    name = node.name or (node.outputs[0].name if node.outputs else "") or "?"
    version = f", opset {opset}" if opset is not None else ""
    return f"{domain}{node.op_type} {name} ({operands}{version}): {unsupported.reason}"


def _described(value: ir.Value) -> str:
    dims = dims_of(value)
    shape = "" if dims is None else f" {list(dims)}"
    kind = f" {dtype_name(value)}" if isinstance(value.type, ir.TensorType) else ""
    return f"{value.name}{kind}{shape}"
