"""ROPE for onert: right for one position; of several it takes the tables of the first for all."""

from __future__ import annotations

import math

import onnx_ir as ir

from o2o.errors import ModelError
from o2o.formats.dialects import called
from o2o.lower.litert.rope import rotate
from o2o.model import Model, attribute, shape_of
from o2o.rewriting.builder import Builder
from o2o.rewriting.rewire import replace_output


def legalize_rope(model: Model, graph: ir.Graph, node: ir.Node) -> None:
    """ROPE of one position with tables [1, 1, 1, H] stays; else it becomes arithmetic."""
    x, sin, cos = node.inputs
    assert x is not None
    assert sin is not None
    assert cos is not None
    if attribute(node, "mode", 0) != 0:
        raise ModelError(
            f"{called(model, graph, node)} rotates neighbours (GPT_J): only GPT_NEOX can be legalized"
        )
    if _is_one(x, cos, sin) and len(shape_of(cos)) == len(shape_of(sin)) == 4:
        return
    old = node.outputs[0]
    op = Builder(graph, before=node, prefix=f"{old.name}/")
    new = rotate_one(op, x, cos, sin) if _is_one(x, cos, sin) else rotate(op, x, cos, sin)
    replace_output(model, old, new)
    graph.remove(node, safe=True)


def rotate_one(op: Builder, x: ir.Value, cos: ir.Value, sin: ir.Value) -> ir.Value:
    """x [1, N, 1, H] rotated by tables of H numbers."""
    H = shape_of(x)[-1]
    sin, cos = (op.reshape(table, [1, 1, 1, H], name="table") for table in (sin, cos))
    return op.node("ROPE", [x, sin, cos], shape_of(x), name="rotated", mode=0)


def _is_one(x: ir.Value, cos: ir.Value, sin: ir.Value) -> bool:
    shape = shape_of(x)
    return (
        len(shape) == 4
        and shape[0] == shape[2] == 1
        and all(math.prod(shape_of(table)) == shape[-1] == shape_of(table)[-1] for table in (cos, sin))
    )
