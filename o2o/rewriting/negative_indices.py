"""Constant indices of GATHER that count from the end, as torch's do. Circle and TFLite have none."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import constant_array
from o2o.model import attribute, shape_of
from o2o.rewriting.builder import add_constant


def count_from_the_front(graph: ir.Graph) -> int:
    """Replace negative constant indices of GATHER, in place.

    Args:
        graph: Changed in place.

    Returns:
        The number of operators changed.
    """
    count = 0
    for node in graph:
        indices = constant_array(node.inputs[1]) if node.op_type == "GATHER" else None
        if indices is None or node.inputs[0] is None or not (indices < 0).any():
            continue
        size = shape_of(node.inputs[0])[attribute(node, "axis", 0)]
        positive = np.where(indices < 0, indices + size, indices).astype(indices.dtype)
        node.replace_input_with(1, add_constant(graph, positive, f"{node.outputs[0].name}/indices"))
        count += 1
    return count
