"""A newer opset for an ONNX model, where its operators mean the same there.

`onnx.version_converter` takes whole messages with all weights and no foreign domain. Here the schemas of both
opsets are compared: an operator may stay if its operands are the same and no attribute disappeared. The few
decoders' operators whose form changed since opset 13 are rewritten.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir

from o2o.errors import ModelError
from o2o.model import Model, attribute
from o2o.rewriting.onnx_builder import builder_for

OLDEST = 13
"""The first opset that can be raised: Softmax has had its present meaning since then."""


def raise_opset(model: Model, opset: int) -> None:
    """Let a model import a newer opset of ONNX's own domain.

    Args:
        model: An ONNX model, changed in place. A model with that opset or a newer one stays as it is.
        opset: The wanted version.

    Raises:
        ModelError: The model is older than opset 13, or an operator has another meaning there.
    """
    graphs = list(model.all_graphs())
    current = graphs[0].opset_imports.get("", 1)
    if current >= opset:
        return
    if current < OLDEST:
        raise ModelError(f"the model has opset {current}: export it with opset {OLDEST} or later")
    for graph in graphs:
        for node in list(graph):
            if node.domain == "":
                _adapt(model, graph, node, current, opset)
    for graph in graphs:
        graph.opset_imports[""] = opset
    for function in model.functions.values():
        function.opset_imports[""] = opset
    least = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])
    if (model.fields.get("ir_version") or 0) < least:
        model.fields["ir_version"] = least


def _adapt(model: Model, graph: ir.Graph, node: ir.Node, old: int, new: int) -> None:
    before, after = (_schema(node.op_type, version) for version in (old, new))
    if before is None:
        return  # an operator of one runtime in ONNX's domain, such as SimplifiedLayerNormalization
    if after is None:
        raise ModelError(f"{model.locate(graph, node)} does not exist in opset {new}")
    if before.since_version == after.since_version:
        return
    if (rewrite := _REWRITES.get(node.op_type)) is not None:
        rewrite(graph, node)
        return
    same_operands = [operand.name for operand in before.inputs] == [operand.name for operand in after.inputs]
    lost = [name for name in node.attributes if name not in after.attributes]
    if lost or not (same_operands or len(before.inputs) <= len(after.inputs)):
        raise ModelError(f"{model.locate(graph, node)} has another form in opset {new} than in opset {old}")


def _schema(op_type: str, version: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, version, "")
    except onnx.defs.SchemaError:
        return None


def _axes_to_operand(graph: ir.Graph, node: ir.Node) -> None:
    """Reductions have had their axes as an operand since opset 18."""
    axes = attribute(node, "axes")
    if axes is None:
        return
    del node.attributes["axes"]
    op = builder_for(graph, before=node, prefix=f"{node.outputs[0].name}_")
    node.resize_inputs(2)
    node.replace_input_with(1, op.constant(np.asarray(axes, np.int64), "axes"))


def _number_of_outputs(graph: ir.Graph, node: ir.Node) -> None:
    """A Split into equal parts has had their number as an attribute since opset 18."""
    if len(node.inputs) < 2 or node.inputs[1] is None:
        node.attributes["num_outputs"] = ir.AttrInt64("num_outputs", len(node.outputs))


_Rewrite = Callable[[ir.Graph, ir.Node], None]
_REDUCTIONS = ("Max", "Mean", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")
_REWRITES: dict[str, _Rewrite] = {
    **dict.fromkeys((f"Reduce{name}" for name in _REDUCTIONS), _axes_to_operand),
    "Split": _number_of_outputs,
}
