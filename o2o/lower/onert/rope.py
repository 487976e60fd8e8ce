"""ROPE for onert, which applies the tables of the first position to all positions."""

from __future__ import annotations

import math

import onnx_ir as ir

from o2o.errors import ModelError
from o2o.lower.rotate_halves import rotate_halves
from o2o.model import Model, attribute, shape_of
from o2o.rewriting.builder import Builder
from o2o.rewriting.rewire import replace_output


def legalize_rope(model: Model, graph: ir.Graph, node: ir.Node) -> None:
    """Replace ROPE by arithmetic, except for one position with tables [1, 1, 1, H].

    Args:
        model: The model of `graph`.
        graph: Changed in place.
        node: ROPE, as `o2o.operators.reference` defines it.

    Raises:
        ModelError: Its mode is GPT_J, which rotates neighboring elements rather than halves.
    """
    x, sin, cos = node.inputs
    assert x is not None
    assert sin is not None
    assert cos is not None
    if attribute(node, "mode", 0) != 0:
        raise ModelError(
            f"{model.locate(graph, node)} rotates neighbors (GPT_J): only GPT_NEOX can be legalized"
        )
    if _has_one_position(x, cos, sin) and len(shape_of(cos)) == len(shape_of(sin)) == 4:
        return
    old = node.outputs[0]
    op = Builder(graph, before=node, prefix=f"{old.name}/")
    new = rotate_one(op, x, cos, sin) if _has_one_position(x, cos, sin) else rotate_halves(op, x, cos, sin)
    replace_output(model, old, new)
    graph.remove(node, safe=True)


def rotate_one(op: Builder, x: ir.Value, cos: ir.Value, sin: ir.Value) -> ir.Value:
    """Build ROPE of one position.

    Args:
        op: Where to insert the nodes.
        x: [1, N, 1, H].
        cos: A table of H elements, of any shape.
        sin: A table of H elements, of any shape.

    Returns:
        The rotated x, [1, N, 1, H].
    """
    H = shape_of(x)[-1]
    sin, cos = (op.reshape(table, [1, 1, 1, H], name="table") for table in (sin, cos))
    return op.node("ROPE", [x, sin, cos], shape_of(x), name="rotated", mode=0)


def _has_one_position(x: ir.Value, cos: ir.Value, sin: ir.Value) -> bool:
    shape = shape_of(x)
    return (
        len(shape) == 4
        and shape[0] == shape[2] == 1
        and all(math.prod(shape_of(table)) == shape[-1] == shape_of(table)[-1] for table in (cos, sin))
    )
