"""RMS_NORM, which onert computes right, of three or four axes."""

from __future__ import annotations

import math

import onnx_ir as ir

from o2o.formats.tensors import is_constant
from o2o.model import DOMAIN, Model, attribute, shape_of
from o2o.rewriting.builder import Builder
from o2o.rewriting.matchers import Miss
from o2o.rewriting.rewire import replace_output
from o2o.rewriting.rms_norm import ROOTS, match_norm

RANKS = (3, 4)


def fuse_norms(model: Model, graph: ir.Graph) -> None:
    """Let each normalisation that is spelled out be one operator, as fuse.rms_norm.py does."""
    for node in list(graph):
        if node.domain != DOMAIN or node.op_type not in ROOTS or node.graph is not graph:
            continue
        try:
            norm = match_norm(node)
        except Miss:
            continue
        old = norm.last.outputs[0]
        if is_constant(norm.weight) and old.dtype == ir.DataType.FLOAT and len(shape_of(old)) in RANKS:
            op = Builder(graph, before=norm.last)
            inputs = [norm.x, norm.weight]
            replace_output(model, old, op.node("RMS_NORM", inputs, shape_of(old), epsilon=norm.epsilon))


def legalize_rms_norm(model: Model, graph: ir.Graph, node: ir.Node) -> None:
    """Give it four axes where it has fewer than three, or more than four."""
    x, weight = node.inputs
    assert x is not None
    shape = shape_of(x)
    if len(shape) in RANKS:
        return
    old = node.outputs[0]
    op = Builder(graph, before=node, prefix=f"{old.name}/")
    rows = op.reshape(x, [1, 1, math.prod(shape[:-1]), shape[-1]], name="rows")
    epsilon = attribute(node, "epsilon", 0.0)
    y = op.node("RMS_NORM", [rows, weight], shape_of(rows), name="normalised", epsilon=epsilon)
    replace_output(model, old, op.reshape(y, shape))
    graph.remove(node, safe=True)
