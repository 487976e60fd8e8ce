"""Outputs in memory of their own: onert reuses the memory of an output that the graph reads itself."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from o2o.model import Model, shape_of
from o2o.rewriting.builder import Builder
from o2o.rewriting.rewire import insert_before_output


def copy_shared_outputs(model: Model, graph: ir.Graph) -> None:
    """Replace each output that is also read by a node, or is an input, by a copy.

    Args:
        model: The model of `graph`.
        graph: Changed in place.
    """
    for value in list(graph.outputs):
        if value.uses() or value.is_graph_input():
            insert_before_output(model, graph, value, copied)


def copied(op: Builder, value: ir.Value) -> ir.Value:
    """Build a copy of a value.

    Args:
        op: Where to insert the node.
        value: A tensor of numbers.

    Returns:
        `value` + 0: a RESHAPE would share the memory of `value`.
    """
    assert value.dtype is not None
    zero = op.constant(np.zeros((), value.dtype.numpy()), f"{value.name}/zero")
    return op.node("ADD", [value, zero], shape_of(value), name=f"{value.name}/copy")
