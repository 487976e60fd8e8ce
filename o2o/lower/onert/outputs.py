"""Outputs that are nothing else: onert reuses the memory of one that is read inside."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from o2o.model import Model, shape_of
from o2o.rewriting.builder import Builder
from o2o.rewriting.rewire import detach_output


def copy_shared_outputs(model: Model, graph: ir.Graph) -> None:
    """Give out a copy of each output of `graph` that is read inside, or is an input, too."""
    for value in list(graph.outputs):
        if value.uses() or value.is_graph_input():
            detach_output(model, graph, value, copied)


def copied(op: Builder, value: ir.Value) -> ir.Value:
    """`value` in memory of its own. RESHAPE would share it."""
    assert value.dtype is not None
    zero = op.constant(np.zeros((), value.dtype.numpy()), f"{value.name}/zero")
    return op.node("ADD", [value, zero], shape_of(value), name=f"{value.name}/copy")
