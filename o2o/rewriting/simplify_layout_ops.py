"""Layout operators that undo each other, or that move nothing, go."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from o2o.model import Model, is_dynamic, shape_of
from o2o.rewriting.axes import skip_reshapes
from o2o.rewriting.builder import Builder
from o2o.rewriting.dead_code_elimination import remove_dead_nodes
from o2o.rewriting.matchers import constant_ints, producer_of


def simplify_layout_ops(model: Model, graph: ir.Graph) -> None:
    """Let each chain of TRANSPOSEs or of RESHAPEs be one of them at most, and a TRANSPOSE that only moves
    axes of size 1 a RESHAPE. Outputs of the graph keep the operator that makes them."""
    for node in list(graph):
        output = node.outputs[0] if len(node.outputs) == 1 else None
        if output is None or output.is_graph_output() or not output.uses() or is_dynamic(output):
            continue
        found = _collapsed(graph, node)
        if found is not None and found is not output:
            output.replace_all_uses_with(found)
    remove_dead_nodes(graph)


def _collapsed(graph: ir.Graph, node: ir.Node) -> ir.Value | None:
    """What makes the output of `node` with fewer operators, if anything does."""
    output = node.outputs[0]
    if producer_of(output, "TRANSPOSE", "RESHAPE") is None or output.meta.get("fields", {}).get(
        "quantization"
    ):
        return None
    source = node.inputs[0]
    assert source is not None
    op = Builder(graph, before=node, prefix=f"{output.name}/")
    order = _order(node)
    if node.op_type == "TRANSPOSE" and order is not None:
        earlier = producer_of(source, "TRANSPOSE")
        if earlier is not None and (before := _order(earlier)) is not None and earlier.inputs[0] is not None:
            source, order = earlier.inputs[0], [before[axis] for axis in order]
        if not _moves(shape_of(source), order):
            return op.reshape(skip_reshapes(source), shape_of(output), name="reshaped")
        return op.transpose(source, order, name="turned") if source is not node.inputs[0] else None
    if node.op_type == "RESHAPE" and (whole := skip_reshapes(source)) is not source:
        return op.reshape(whole, shape_of(output), name="reshaped")
    return None


def _order(node: ir.Node) -> list[int] | None:
    return constant_ints(node.inputs[1]) if node.op_type == "TRANSPOSE" else None


def _moves(shape: Sequence[int], order: Sequence[int]) -> bool:
    """Whether numbers change places, rather than only axes of size 1."""
    kept = [axis for axis in order if shape[axis] != 1]
    return kept != sorted(kept)
