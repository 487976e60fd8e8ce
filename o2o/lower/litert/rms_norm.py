"""RMS_NORM in TFLite builtins."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from o2o.model import Model, attribute, shape_of
from o2o.rewriting.builder import Builder
from o2o.rewriting.rewire import replace_output


def lower_rms_norm(model: Model, graph: ir.Graph, node: ir.Node) -> None:
    """Insert x / sqrt(mean(x^2) + epsilon) * weight in the place of RMS_NORM.

    Args:
        model: The model of `graph`.
        graph: Changed in place; `node` stays, without uses.
        node: RMS_NORM of x [..., D] and weight [D], as `o2o.operators.reference` defines it.
    """
    x, weight = node.inputs
    assert x is not None
    assert weight is not None
    old = node.outputs[0]
    op = Builder(graph, before=node, prefix=f"{old.name}/")
    shape = shape_of(x)
    mean_shape = [*shape[:-1], 1]
    axis = op.constant([len(shape) - 1], "axis", np.int32)
    mean = op.node("MEAN", [op.node("MUL", [x, x], shape, name="square"), axis], mean_shape, keepDims=True)
    epsilon = op.constant(attribute(node, "epsilon", 0.0), "epsilon", np.float32)
    root = op.node("RSQRT", [op.node("ADD", [mean, epsilon], mean_shape)], mean_shape)
    normalized = op.node("MUL", [x, root], shape, name="normalized")
    replace_output(model, old, op.node("MUL", [normalized, weight], shape, name="scaled"))
