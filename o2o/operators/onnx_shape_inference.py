"""Shapes and types that ONNX's shape inference finds for the values of a model. No large constant is read."""

from __future__ import annotations

import onnx
import onnx_ir as ir

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
