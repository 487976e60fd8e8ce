"""The order of a graph's tensors in a file."""

from __future__ import annotations

import onnx_ir as ir

from o2o.errors import ModelError
from o2o.model import quantization_constants


def tensor_order(graph: ir.Graph) -> list[ir.Value]:
    """List the values of a graph in the order of their tensor numbers.

    Args:
        graph: The graph.

    Returns:
        Its inputs, its initializers, the values of its operators in their order, then all others.

    Raises:
        ModelError: A value is used whose producer is not in the graph.
    """
    values: dict[ir.Value, None] = {}
    nodes = list(graph)
    node_ids = {id(node) for node in nodes}

    def add(value: ir.Value | None) -> None:
        if value is None or value in values or is_absent(value):
            return
        producer = value.producer()
        if producer is not None and id(producer) not in node_ids:
            raise ModelError(f"{value.name} is used, but its producer {producer.op_type} is not in the graph")
        values[value] = None

    for value in (*graph.inputs, *graph.initializers.values()):
        add(value)
    for node in nodes:
        for value in (*node.inputs, *node.outputs, *node.meta.get("intermediates", ())):
            add(value)
    for value in (*graph.outputs, *graph.meta.get("loose", ())):
        add(value)
    order = list(values)
    for value in order:  # grows during the loop
        for other in quantization_constants(value).values():
            if other not in values and not is_absent(other):
                add(other)
                order.append(other)
    return order


def is_absent(value: ir.Value) -> bool:
    """Return whether a value stands for an output that its operator does not compute.

    Args:
        value: Any value.

    Returns:
        True for a value with an empty name.
    """
    return value.name == ""
