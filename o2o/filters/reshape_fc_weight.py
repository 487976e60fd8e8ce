"""`reshape.fc_weight.py`."""

from __future__ import annotations

import argparse
import copy

import onnx_ir as ir

from o2o.cli.text import counted
from o2o.filters.base import Filter
from o2o.formats.tensors import with_shape
from o2o.model import Model, shape_of
from o2o.rewriting.builder import fresh_name

WEIGHT = 1  # the operand of FULLY_CONNECTED


class ReshapeFcWeight(Filter):
    """Give the weights of FULLY_CONNECTED the strict shape [O,I] where they have more axes.

        x, w [1,1,O,I] -- FULLY_CONNECTED   =>   x, w [O,I] -- FULLY_CONNECTED

    Some runtimes take no other shape. A constant that other operators use too stays as it is for them, and
    the weight becomes a second one over the same bytes: nothing is copied.
    Left alone: weights that are not constants, or sparse, or of more than two axes that are not 1.
    """

    name = "reshape.fc_weight.py"
    usage_example = "reshape.fc_weight.py < in.circle > out.circle"

    def apply(self, model: Model, args: argparse.Namespace) -> None:
        reshaped_, left = 0, 0
        for graph in model.graphs:
            for value in _weights(graph):
                if _can_be_flat(value):
                    _flatten(graph, value)
                    reshaped_ += 1
                else:
                    left += 1
        told = f"reshaped {counted(reshaped_, 'weight')}"
        self.log(told + (f", left {left} alone" if left else ""))


def _weights(graph: ir.Graph) -> list[ir.Value]:
    """The weights in `graph` that have other than two axes, each once."""
    found = [node.inputs[WEIGHT] for node in graph if node.op_type == "FULLY_CONNECTED"]
    return [value for value in dict.fromkeys(found) if value is not None and len(shape_of(value)) != 2]


def _can_be_flat(value: ir.Value) -> bool:
    shape = shape_of(value)
    constant = value.const_value is not None and value.is_initializer()
    sparse = "sparsity" in value.meta.get("fields", {})
    return constant and not sparse and len(shape) > 2 and all(dim == 1 for dim in shape[:-2])


def _flatten(graph: ir.Graph, value: ir.Value) -> None:
    """Let all FULLY_CONNECTED that use `value` as weights use it, or a second value, as [O,I]."""
    uses = [use for use in value.uses() if use.node.op_type == "FULLY_CONNECTED" and use.idx == WEIGHT]
    alone = len(uses) == len(value.uses()) and not value.is_graph_output()
    tensor = value.const_value
    assert tensor is not None
    shape = shape_of(value)
    encoded = tensor.dtype != value.dtype  # bytes that do not spell the tensor, which have no axes
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
    """The tensor's other fields without its `dropped` first axes."""
    fields = {key: item for key, item in fields.items() if key != "shapeSignature"}
    if (quantization := fields.get("quantization")) is not None:
        fields["quantization"] = quantization = copy.copy(quantization)
        axis = getattr(quantization, "quantizedDimension", 0)
        quantization.quantizedDimension = max(axis - dropped, 0)  # type: ignore[attr-defined]
    return fields


main = ReshapeFcWeight.main
