"""Shapes and types that ONNX's shape inference finds for the values of a model. No large constant is read."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_ir as ir
from onnx import defs

from o2o.formats.onnx_writer import decoded_header
from o2o.model import Model
from o2o.operators.ort_shape_inference import ort_shapes


def infer_shapes(model: Model) -> None:
    """Complete the types and shapes of all values, also in branches and functions.

    Args:
        model: An ONNX model. Known dimensions stay; unknown and symbolic ones become numbers where that is
            inferred.

    Raises:
        ModelError: The model cannot be written.
    """
    with ort_shapes():
        inferred = decoded_header(
            model, lambda proto: onnx.shape_inference.infer_shapes(proto, data_prop=True)
        )
    for graph, other in zip(model.all_graphs(), inferred.all_graphs(), strict=True):
        known = _values(other)
        for name, value in _values(graph).items():
            if name in known:
                _complete(value, known[name])


def forget_wrong_shapes(model: Model) -> None:
    """Forget the shapes in a file that contradict those that follow from the operands.

    Exporters write the shapes of results, and some are wrong. `onnx.shape_inference` believes them.

    Args:
        model: An ONNX model, changed in place: a wrong shape becomes the inferred one.

    Raises:
        ModelError: The model cannot be written.
    """
    with ort_shapes():
        inferred = decoded_header(
            model, lambda proto: onnx.shape_inference.infer_shapes(_without_shapes(proto), data_prop=True)
        )
    for graph, other in zip(model.all_graphs(), inferred.all_graphs(), strict=True):
        known = _values(other)
        for name, value in _values(graph).items():
            new = known[name].shape if name in known else None
            if value.producer() is not None and new is not None and _contradict(value.shape, new):
                value.shape = ir.Shape(list(new))


def _contradict(old: ir.Shape | None, new: ir.Shape) -> bool:
    """Whether two shapes have other ranks, or another number somewhere."""
    if old is None:
        return False
    pairs = zip(old, new, strict=False)
    return len(old) != len(new) or any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs)


def _without_shapes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Remove what a message says about results, but for those of operators that are not known."""
    own = {function.domain for function in proto.functions}
    for graph in _graphs(proto.graph):
        unknown = {
            name
            for node in graph.node
            if node.domain in own or not defs.has(node.op_type, domain=_domain(node))
            for name in node.output
        }
        opaque = [value for value in graph.value_info if value.name in unknown]
        del graph.value_info[:]
        graph.value_info.extend(opaque)
        results = {name for node in graph.node for name in node.output} - unknown
        for value in graph.output:
            if value.name in results and value.type.HasField("tensor_type"):
                value.type.tensor_type.ClearField("shape")
    return proto


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and those of its nodes."""
    yield graph
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            yield from _graphs(inner)


def _domain(node: onnx.NodeProto) -> str:
    return "" if node.domain == "ai.onnx" else str(node.domain)


def _values(graph: ir.Graph) -> dict[str, ir.Value]:
    values = [*graph.inputs, *graph.outputs, *(value for node in graph for value in node.outputs)]
    return {value.name: value for value in values if value.name}


def _complete(value: ir.Value, inferred: ir.Value) -> None:
    if value.type is None:
        value.type = inferred.type
    if inferred.shape is None:
        return
    if value.shape is None:
        value.shape = ir.Shape(list(inferred.shape))
    elif len(value.shape) == len(inferred.shape):
        pairs = zip(value.shape, inferred.shape, strict=True)
        dims = [new if isinstance(new, int) and not isinstance(old, int) else old for old, new in pairs]
        if dims != list(value.shape):
            value.shape = ir.Shape(dims)
