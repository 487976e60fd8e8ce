"""Simplification of layout operators: chains of TRANSPOSE or RESHAPE become one operator or none."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from o2o.model import Model, is_dynamic, shape_of
from o2o.rewriting.axes import skip_reshapes
from o2o.rewriting.builder import Builder
from o2o.rewriting.dead_code_elimination import remove_dead_nodes
from o2o.rewriting.matchers import constant_ints, producer_of


def simplify_layout_ops(model: Model, graph: ir.Graph) -> int:
    """Merge each chain of TRANSPOSEs, and each chain of RESHAPEs, into at most one operator.

    A TRANSPOSE that moves only axes of size 1 becomes a RESHAPE. Operators that compute outputs stay.

    Args:
        model: The model of `graph`.
        graph: Changed in place.

    Returns:
        The number of values that are now computed by fewer operators.
    """
    count = 0
    for node in list(graph):
        output = node.outputs[0] if len(node.outputs) == 1 else None
        if output is None or output.is_graph_output() or not output.uses() or is_dynamic(output):
            continue
        simplified = _simplified(graph, node)
        if simplified is not None and simplified is not output:
            output.replace_all_uses_with(simplified)
            count += 1
    remove_dead_nodes(graph)
    return count


def _simplified(graph: ir.Graph, node: ir.Node) -> ir.Value | None:
    """The output of `node` computed with fewer operators; None if that is not possible."""
    output = node.outputs[0]
    layout = producer_of(output, "TRANSPOSE", "RESHAPE")
    if layout is None or output.meta.get("fields", {}).get("quantization"):
        return None
    source = node.inputs[0]
    assert source is not None
    op = Builder(graph, before=node, prefix=f"{output.name}/")
    permutation = _permutation(node)
    if node.op_type == "TRANSPOSE" and permutation is not None:
        earlier = producer_of(source, "TRANSPOSE")
        if earlier is not None and (first := _permutation(earlier)) is not None:
            assert earlier.inputs[0] is not None
            source, permutation = earlier.inputs[0], [first[axis] for axis in permutation]
        if not _moves_data(shape_of(source), permutation):
            return op.reshape(skip_reshapes(source), shape_of(output), name="reshaped")
        return op.transpose(source, permutation, name="transposed") if source is not node.inputs[0] else None
    if node.op_type == "RESHAPE" and (original := skip_reshapes(source)) is not source:
        return op.reshape(original, shape_of(output), name="reshaped")
    return None


def _permutation(node: ir.Node) -> list[int] | None:
    return constant_ints(node.inputs[1]) if node.op_type == "TRANSPOSE" else None


def _moves_data(shape: Sequence[int], permutation: Sequence[int]) -> bool:
    """Whether a transpose moves numbers, not only axes of size 1."""
    large = [axis for axis in permutation if shape[axis] != 1]
    return large != sorted(large)
