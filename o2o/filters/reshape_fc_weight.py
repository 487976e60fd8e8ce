"""`reshape.fc_weight.py`."""

from __future__ import annotations

import argparse
import copy

import onnx_ir as ir

from o2o.cli.text import counted
from o2o.filters.base import ALL_FORMATS, Filter
from o2o.formats.tensors import with_shape
from o2o.model import DOMAIN, Model, dims_of, shape_of
from o2o.rewriting.builder import fresh_name

WEIGHT = 1  # the operand of FULLY_CONNECTED


class ReshapeFcWeight(Filter):
    """Reshape the weights of FULLY_CONNECTED, or of ONNX's MatMul, to a matrix if they have more axes.

        x, w [1,1,O,I] -- FULLY_CONNECTED   =>   x, w [O,I] -- FULLY_CONNECTED

    Some runtimes take no other shape, and quantize.weights.py takes matrices alone. If other operators use a
    constant, it stays, and a second constant over the same bytes becomes the weight. Nothing is copied.
    Left alone: weights that are not constant, are sparse, or have more than two axes other than 1. Of ONNX
    also those with more axes than x: the product has its axes from them.
    """

    name = "reshape.fc_weight.py"
    purpose = "Weights"
    input_formats = ALL_FORMATS
    usage_example = "reshape.fc_weight.py < in.circle > out.circle"

    def apply(self, model: Model, args: argparse.Namespace) -> None:
        reshaped, left = 0, 0
        for graph in model.all_graphs():
            for value in _weights(graph):
                if value.name in graph.initializers and _can_be_flat(value):
                    _flatten(graph, value)
                    reshaped += 1
                else:
                    left += 1
        skipped = f", left {left} alone" if left else ""
        self.log(f"reshaped {counted(reshaped, 'weight')}{skipped}")


def _weights(graph: ir.Graph) -> list[ir.Value]:
    """The weights in `graph` whose rank is not 2, each once."""
    weights = [
        value for node in graph for value in node.inputs[WEIGHT : WEIGHT + 1] if _is_weight(node, WEIGHT)
    ]
    return [value for value in dict.fromkeys(weights) if value is not None and len(dims_of(value) or ()) != 2]


def _is_weight(node: ir.Node, operand: int) -> bool:
    """Whether an operand of a node may be reshaped to a matrix."""
    if operand != WEIGHT:
        return False
    if (node.domain, node.op_type) == (DOMAIN, "FULLY_CONNECTED"):
        return True
    if (node.domain, node.op_type) != ("", "MatMul") or None in node.inputs:
        return False
    x, weight = node.inputs
    if x is None or weight is None or weight.const_value is None or x.shape is None:
        return False
    return len(x.shape) >= len(dims_of(weight) or ())


def _can_be_flat(value: ir.Value) -> bool:
    shape = shape_of(value)
    constant = value.const_value is not None and value.is_initializer()
    sparse = "sparsity" in value.meta.get("fields", {})
    return constant and not sparse and len(shape) > 2 and all(dim == 1 for dim in shape[:-2])


def _flatten(graph: ir.Graph, value: ir.Value) -> None:
    """Make the weight `value` [O,I]; a second value if it has other users."""
    uses = [use for use in value.uses() if use.node.graph is graph and _is_weight(use.node, use.idx)]
    alone = len(uses) == len(value.uses()) and not value.is_graph_output()
    tensor = value.const_value
    assert tensor is not None
    shape = shape_of(value)
    encoded = tensor.dtype != value.dtype  # packed bytes, which have no axes
    if alone:
        flat = value
    else:
        flat = ir.Value(name=fresh_name(graph, f"{value.name}_2d"), type=value.type)
        flat.meta.update(value.meta)
    flat.const_value = tensor if encoded else with_shape(tensor, shape[-2:], flat.name or "")
    flat.shape = ir.Shape(shape[-2:])
    flat.meta["fields"] = _flat_fields(value.meta.get("fields", {}), len(shape) - 2)
    if not alone:
        graph.register_initializer(flat)
        for use in uses:
            use.node.replace_input_with(use.idx, flat)


def _flat_fields(fields: dict[str, object], dropped: int) -> dict[str, object]:
    """The tensor's fields after its first `dropped` axes were removed."""
    fields = {key: item for key, item in fields.items() if key != "shapeSignature"}
    if (quantization := fields.get("quantization")) is not None:
        fields["quantization"] = quantization = copy.copy(quantization)
        axis = getattr(quantization, "quantizedDimension", 0)
        quantization.quantizedDimension = max(axis - dropped, 0)  # type: ignore[attr-defined]
    return fields


main = ReshapeFcWeight.main
