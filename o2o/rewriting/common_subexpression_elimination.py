"""Common subexpression elimination: masks, rotation tables and constants that every layer repeats.

Counterpart: `onnx_ir.passes.common.CommonSubexpressionEliminationPass`. That one takes every ONNX operator
for a pure function. Circle's ATTENTION writes caches, custom operators are opaque, and quantized results
depend on scales that are no operands.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from o2o.formats.tensors import StreamedTensor, chunks, is_constant
from o2o.model import Model, shape_of
from o2o.operators.reference import is_pure
from o2o.rewriting.rewire import replace_output

SMALL = 1 << 16  # bytes up to which constants are compared: weights are larger


def eliminate_common_subexpressions(model: Model, graph: ir.Graph) -> int:
    """Merge nodes of `graph` that apply one pure operator to the same operands.

    Nodes with state, custom operators and quantized results stay. Two outputs of the graph stay two values.

    Args:
        model: The model of `graph`; its signatures stay in step.
        graph: Changed in place.

    Returns:
        The number of nodes removed.
    """
    _merge_small_constants(graph)
    first: dict[tuple[Any, ...], ir.Node] = {}
    count = 0
    for node in list(graph):
        if not is_pure(node) or any(v.meta.get("fields") for v in node.outputs) or node.meta.get("fields"):
            continue
        original = first.setdefault(_expression(node), node)
        pairs = list(zip(node.outputs, original.outputs, strict=True))
        if original is node or any(old.is_graph_output() and new.is_graph_output() for old, new in pairs):
            continue
        for old, new in pairs:
            if old.is_graph_output():
                replace_output(model, old, new)
            else:
                old.replace_all_uses_with(new)
        graph.remove(node, safe=True)
        count += 1
    return count


def _expression(node: ir.Node) -> tuple[Any, ...]:
    """A key that is equal for two nodes that compute the same."""
    options = tuple(
        sorted((attribute.name, _hashable(attribute.value)) for attribute in node.attributes.values())
    )
    results = tuple((value.dtype, shape_of(value)) for value in node.outputs)
    return node.op_type, tuple(map(id, node.inputs)), options, results


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else value


def _merge_small_constants(graph: ir.Graph) -> None:
    """Let nodes use one of several small constants with the same numbers."""
    first: dict[tuple[Any, ...], ir.Value] = {}
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.nbytes > SMALL or not is_constant(value) or value.meta.get("fields"):
            continue
        if isinstance(tensor, StreamedTensor):  # a weight that is not in memory
            continue
        key = value.dtype, tensor.dtype, shape_of(value), b"".join(chunks(tensor))
        original = first.setdefault(key, value)
        if original is not value and not value.is_graph_output():
            value.replace_all_uses_with(original)
