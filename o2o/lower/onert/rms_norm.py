"""RMS_NORM of three or four axes, the only ranks that onert computes correctly."""

from __future__ import annotations

import math

import onnx_ir as ir

from o2o.model import Model, attribute, shape_of
from o2o.rewriting.builder import Builder
from o2o.rewriting.matchers import fail
from o2o.rewriting.rewire import replace_output
from o2o.rewriting.rewrite_rule import apply_rule
from o2o.rewriting.rms_norm import Normalized, RmsNormRule

RANKS = (3, 4)


class OnertRmsNormRule(RmsNormRule):
    """RMSNorm of float32 with three or four axes, which onert's kernel computes correctly."""

    takes_layer_norm = True

    def match(self, node: ir.Node) -> Normalized:
        norm = super().match(node)
        value = norm.value
        if value.dtype != ir.DataType.FLOAT or len(shape_of(value)) not in RANKS:
            fail("onert's RMS_NORM takes float32 in three or four axes", value)
        return norm


def fuse_norms(model: Model, graph: ir.Graph) -> None:
    """Fuse each decomposed normalization into RMS_NORM, as fuse.rms_norm.py does.

    Args:
        model: The model of `graph`.
        graph: Changed in place.
    """
    apply_rule(model, graph, OnertRmsNormRule())


def legalize_rms_norm(model: Model, graph: ir.Graph, node: ir.Node) -> None:
    """Reshape RMS_NORM to four axes where it has fewer than three, or more than four.

    Args:
        model: The model of `graph`.
        graph: Changed in place.
        node: RMS_NORM of x [..., D].
    """
    x, weight = node.inputs
    assert x is not None
    shape = shape_of(x)
    if len(shape) in RANKS:
        return
    old = node.outputs[0]
    op = Builder(graph, before=node, prefix=f"{old.name}/")
    rows = op.reshape(x, [1, 1, math.prod(shape[:-1]), shape[-1]], name="rows")
    epsilon = attribute(node, "epsilon", 0.0)
    y = op.node("RMS_NORM", [rows, weight], shape_of(rows), name="normalized", epsilon=epsilon)
    replace_output(model, old, op.reshape(y, shape))
    graph.remove(node, safe=True)
