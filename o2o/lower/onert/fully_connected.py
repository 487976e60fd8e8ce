"""FULLY_CONNECTED for onert, which gives [rows, O] whatever its input's axes are, and computes int8 weights
with a scale for each row as if all had the first.

So it is asked for rows, and such weights get a scale of 1, theirs are multiplied with afterwards, and only
then comes the bias:

    x [1,1,D], w int8 [O,D], scales [O]  =>  RESHAPE [1,D] - FULLY_CONNECTED - MUL scales - RESHAPE [1,1,O]
"""

from __future__ import annotations

import copy
import math

import numpy as np
import onnx_ir as ir

from o2o.errors import ModelError
from o2o.formats.dialects import called
from o2o.formats.schema import DIALECTS
from o2o.formats.tensors import is_constant, is_quantized
from o2o.model import Model, attribute, shape_of
from o2o.rewriting.builder import Builder
from o2o.rewriting.rewire import replace_output


def legalize_fully_connected(model: Model, graph: ir.Graph, node: ir.Node) -> None:
    x, w, *bias = node.inputs
    assert x is not None
    assert w is not None
    old = node.outputs[0]
    activation = attribute(node, "fusedActivationFunction", 0)
    scales = _row_scales(model, graph, node, w)
    if scales is None and len(shape_of(x)) == len(shape_of(old)) == 2:
        return
    wide, D = shape_of(w)
    shape = [math.prod(shape_of(x)) // D, wide]
    op = Builder(graph, before=node, prefix=f"{old.name}/")
    rows = op.reshape(x, [shape[0], D], name="rows")
    if scales is None:
        how = {"fusedActivationFunction": activation}
        y = op.node("FULLY_CONNECTED", [rows, w, *bias], shape, name="product", **how)
    else:
        y = op.node("FULLY_CONNECTED", [rows, _unscaled(model, graph, w), None], shape, name="product")
        then = [("MUL", op.constant(scales, "scales")), *(("ADD", b) for b in bias if b is not None)]
        for number, (op_type, other) in enumerate(then, 1):
            how = {"fusedActivationFunction": activation if number == len(then) else 0}
            y = op.node(op_type, [y, other], shape, name="scaled", **how)
    replace_output(model, old, op.reshape(y, shape_of(old), name="row"))
    graph.remove(node, safe=True)


def _row_scales(model: Model, graph: ir.Graph, node: ir.Node, w: ir.Value) -> np.ndarray | None:
    """The scales [O] float32 of int8 weights by row; None for others. Raises ModelError for weights that
    onert cannot take."""
    if not is_quantized(w):
        return None
    quantization = w.meta["fields"]["quantization"]
    scale, zeros = quantization.scale, quantization.zeroPoint
    if w.dtype != ir.DataType.INT8 or not is_constant(w) or scale is None or not len(scale):
        raise ModelError(
            f"{called(model, graph, node)}: {w.name} is {w.dtype}, and onert computes with float32 and int8 "
            "weights only: quantise with quantize.weights.py --recipe dynamic_int8"
        )
    if (zeros is not None and np.any(zeros)) or (len(scale) > 1 and quantization.quantizedDimension != 0):
        raise ModelError(
            f"{called(model, graph, node)}: {w.name} has zero points, or scales not by row, which onert does "
            "not compute with"
        )
    return np.asarray(scale, np.float32) if len(scale) > 1 else None


def _unscaled(model: Model, graph: ir.Graph, w: ir.Value) -> ir.Value:
    """`w` with a scale of 1 for all; once a graph, as heads may be shared."""
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
