"""A copy of a graph over the same constants."""

from __future__ import annotations

import onnx_ir as ir

from o2o.model import quantization_constants


def copied(graph: ir.Graph) -> tuple[ir.Graph, dict[ir.Value, ir.Value]]:
    """Copy a graph. Both share the bytes of their constants.

    Args:
        graph: A graph of Circle or TFLite.

    Returns:
        The copy, and the value in it for each value of `graph`.
    """
    copy = graph.clone()
    copies = dict(zip(graph.inputs, copy.inputs, strict=True))
    copies |= {value: copy.initializers[name] for name, value in graph.initializers.items()}
    for node, twin in zip(graph, copy, strict=True):
        copies |= dict(zip(node.outputs, twin.outputs, strict=True))
        twin.attributes.update(node.attributes)  # inner graphs are shared, not copied
    for new in copies.values():
        if constants := quantization_constants(new):
            new.meta["quantization_constants"] = {key: copies[value] for key, value in constants.items()}
    copy.meta.clear()
    if (fields := graph.meta.get("fields")) is not None:
        copy.meta["fields"] = fields
    return copy, copies
