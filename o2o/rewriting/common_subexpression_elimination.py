"""Computing once what a graph computes twice: masks, rotations, what lowering repeats in every layer."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from o2o.formats.tensors import StreamedTensor, is_constant
from o2o.model import Model, shape_of
from o2o.operators.reference import is_pure
from o2o.rewriting.rewire import replace_output

SMALL = 1 << 16  # bytes up to which constants are compared: no weights


def eliminate_common_subexpressions(model: Model, graph: ir.Graph) -> int:
    """Let nodes of `graph` that compute the same from the same values be one; how many went.

    Only functions of their operands are merged: nothing with state, nothing custom, nothing quantised
    (its scales are no operands). Two values that are both given out stay two.
    """
    _share_constants(graph)
    first: dict[tuple[Any, ...], ir.Node] = {}
    count = 0
    for node in list(graph):
        if not is_pure(node) or any(v.meta.get("fields") for v in node.outputs) or node.meta.get("fields"):
            continue
        kept = first.setdefault(_computation(node), node)
        pairs = list(zip(node.outputs, kept.outputs, strict=True))
        if kept is node or any(old.is_graph_output() and new.is_graph_output() for old, new in pairs):
            continue
        for old, new in pairs:
            if old.is_graph_output():
                replace_output(model, old, new)
            else:
                old.replace_all_uses_with(new)
        graph.remove(node, safe=True)
        count += 1
    return count


def _computation(node: ir.Node) -> tuple[Any, ...]:
    """Equal for two nodes that compute the same."""
    options = tuple(
        sorted((attribute.name, _hashable(attribute.value)) for attribute in node.attributes.values())
    )
    results = tuple((value.dtype, shape_of(value)) for value in node.outputs)
    return node.op_type, tuple(map(id, node.inputs)), options, results


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else value


def _share_constants(graph: ir.Graph) -> None:
    """Let small constants with the same numbers be one where nodes use them."""
    first: dict[tuple[Any, ...], ir.Value] = {}
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.nbytes > SMALL or not is_constant(value) or value.meta.get("fields"):
            continue
        if isinstance(tensor, StreamedTensor):  # a weight that is still elsewhere
            continue
        kept = first.setdefault((value.dtype, tensor.dtype, shape_of(value), tensor.tobytes()), value)
        if kept is not value and not value.is_graph_output():
            value.replace_all_uses_with(kept)
