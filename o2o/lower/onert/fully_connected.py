"""FULLY_CONNECTED without onert's two defects.

onert's result is [rows, O] whatever the axes of the input are, so the input becomes [rows, D]. And onert
applies the first scale to all rows of int8 weights. Weights with a scale per row get a scale of 1 instead; a
MUL applies their scales afterwards, in front of the bias:

    x [1,1,D], w int8 [O,D], scales [O]  =>  RESHAPE [1,D] - FULLY_CONNECTED - MUL scales - RESHAPE [1,1,O]
"""

from __future__ import annotations

import copy
import math

import numpy as np
import onnx_ir as ir

from o2o.errors import ModelError
from o2o.formats.schema import DIALECTS
from o2o.formats.tensors import is_constant, is_quantized
from o2o.model import Model, attribute, shape_of
from o2o.rewriting.builder import Builder
from o2o.rewriting.rewire import replace_output


def legalize_fully_connected(model: Model, graph: ir.Graph, node: ir.Node) -> None:
    """Replace FULLY_CONNECTED where onert would compute it wrongly.

    Args:
        model: The model of `graph`.
        graph: Changed in place.
        node: FULLY_CONNECTED of x [..., D] and w [O, D].

    Raises:
        ModelError: The weights are not float32 or symmetric int8 with scales per row or per tensor.
    """
    x, w, *bias = node.inputs
    assert x is not None
    assert w is not None
    old = node.outputs[0]
    activation = attribute(node, "fusedActivationFunction", 0)
    scales = _row_scales(model, graph, node, w)
    if scales is None and len(shape_of(x)) == len(shape_of(old)) == 2:
        return
    w_rows, D = shape_of(w)
    shape = [math.prod(shape_of(x)) // D, w_rows]
    op = Builder(graph, before=node, prefix=f"{old.name}/")
    rows = op.reshape(x, [shape[0], D], name="rows")
    if scales is None:
        y = op.node(
            "FULLY_CONNECTED", [rows, w, *bias], shape, name="product", fusedActivationFunction=activation
        )
    else:
        y = op.node("FULLY_CONNECTED", [rows, _unscaled(model, graph, w), None], shape, name="product")
        steps = [("MUL", op.constant(scales, "scales")), *(("ADD", b) for b in bias if b is not None)]
        for number, (op_type, operand) in enumerate(steps, 1):
            fused = activation if number == len(steps) else 0
            y = op.node(op_type, [y, operand], shape, name="scaled", fusedActivationFunction=fused)
    replace_output(model, old, op.reshape(y, shape_of(old), name="row"))
    graph.remove(node, safe=True)


def _row_scales(model: Model, graph: ir.Graph, node: ir.Node, w: ir.Value) -> np.ndarray | None:
    """Scales per row, float32 [O]; None for float32 weights and for one scale per tensor."""
    if not is_quantized(w):
        return None
    quantization = w.meta["fields"]["quantization"]
    scale, zeros = quantization.scale, quantization.zeroPoint
    if w.dtype != ir.DataType.INT8 or not is_constant(w) or scale is None or not len(scale):
        raise ModelError(
            f"{model.locate(graph, node)}: {w.name} is {w.dtype}, and onert computes with float32 and int8 "
            "weights only: quantize with quantize.weights.py --recipe dynamic_int8"
        )
    if (zeros is not None and np.any(zeros)) or (len(scale) > 1 and quantization.quantizedDimension != 0):
        raise ModelError(
            f"{model.locate(graph, node)}: {w.name} has zero points, or scales that are not per row: "
            "onert supports neither"
        )
    return np.asarray(scale, np.float32) if len(scale) > 1 else None


def _unscaled(model: Model, graph: ir.Graph, w: ir.Value) -> ir.Value:
    """`w` with a scale of 1 per tensor. One constant a graph, as several nodes may share `w`."""
    name = f"{w.name}/unscaled"
    if name in graph.initializers:
        return graph.initializers[name]
    fields = dict(w.meta["fields"])
    parameters = DIALECTS[model.format].table("QuantizationParameters")()
    parameters.scale, parameters.zeroPoint = np.ones(1, np.float32), np.zeros(1, np.int64)
    tensor = copy.copy(w.const_value)
    assert tensor is not None
    tensor.name = name
    new = ir.Value(name=name, shape=w.shape, type=w.type, const_value=tensor)
    new.meta["fields"] = {**fields, "quantization": parameters}
    graph.register_initializer(new)
    return new
