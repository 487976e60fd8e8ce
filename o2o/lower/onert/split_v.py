"""SPLIT_V as one SLICE for each part: onert leaves the parts empty."""

from __future__ import annotations

import onnx_ir as ir

from o2o.errors import ModelError
from o2o.model import Model, shape_of
from o2o.rewriting.builder import Builder
from o2o.rewriting.matchers import constant_ints
from o2o.rewriting.rewire import replace_output


def legalize_split_v(model: Model, graph: ir.Graph, node: ir.Node) -> None:
    """Replace SPLIT_V along a constant axis.

    Args:
        model: The model of `graph`.
        graph: Changed in place.
        node: SPLIT_V. The output shapes are the sizes of its parts.

    Raises:
        ModelError: Its axis is not constant.
    """
    x, _, axes = node.inputs
    assert x is not None
    axis = constant_ints(axes)
    if axis is None:
        raise ModelError(f"onert does not compute {model.locate(graph, node)}: its axis is not constant")
    along = axis[0] % len(shape_of(x))
    op = Builder(graph, before=node, prefix=f"{node.outputs[0].name}/")
    begin = [0] * len(shape_of(x))
    for old in list(node.outputs):
        replace_output(model, old, op.slice(x, begin, shape_of(old), name="part"))
        begin[along] += shape_of(old)[along]
    graph.remove(node, safe=True)
