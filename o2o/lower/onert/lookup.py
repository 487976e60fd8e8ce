"""EMBEDDING_LOOKUP, GATHER and DEQUANTIZE of constants in fewer bits, which become float32 constants.

onert looks up rows of float32 tables only, and its DEQUANTIZE applies the first scale to all rows.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from o2o.errors import ModelError
from o2o.formats.tensors import is_constant, is_quantized
from o2o.model import Model, shape_of
from o2o.operators.traits import lookup_operands
from o2o.quantization.compare import dequantized
from o2o.rewriting.builder import Builder, add_constant
from o2o.rewriting.rewire import replace_output

_HALF_DTYPES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def legalize_lookup(model: Model, graph: ir.Graph, node: ir.Node) -> None:
    """Replace EMBEDDING_LOOKUP by GATHER, and the table of either by a float32 one.

    Args:
        model: The model of `graph`.
        graph: Changed in place.
        node: EMBEDDING_LOOKUP or GATHER.

    Raises:
        ModelError: The result is quantized, or the table is not a constant.
    """
    lookup = lookup_operands(node)
    assert lookup is not None
    table, ids = lookup
    old = node.outputs[0]
    narrow = is_quantized(table) or table.dtype in _HALF_DTYPES
    if not narrow and node.op_type == "GATHER":
        return
    if is_quantized(old) or old.dtype != ir.DataType.FLOAT:
        if old.dtype not in _HALF_DTYPES or not all(use.node.op_type == "DEQUANTIZE" for use in old.uses()):
            raise ModelError(
                f"{model.locate(graph, node)} looks up quantized rows, which onert does not support"
            )
        for use in list(old.uses()):  # the float32 table makes this DEQUANTIZE of float16 rows redundant
            rows = use.node.outputs[0]
            _gather(model, graph, use.node, ids, _as_float32(model, graph, node, table), rows)
        return
    _gather(model, graph, node, ids, _as_float32(model, graph, node, table) if narrow else table, old)


def legalize_dequantize(model: Model, graph: ir.Graph, node: ir.Node) -> None:
    """Replace DEQUANTIZE of a constant by a float32 constant.

    Args:
        model: The model of `graph`.
        graph: Changed in place.
        node: DEQUANTIZE.

    Raises:
        ModelError: Its operand is not a constant.
    """
    (x,) = node.inputs
    assert x is not None
    replace_output(model, node.outputs[0], _as_float32(model, graph, node, x))
    graph.remove(node, safe=True)


def _gather(
    model: Model, graph: ir.Graph, node: ir.Node, ids: ir.Value, table: ir.Value, old: ir.Value
) -> None:
    op = Builder(graph, before=node)
    replace_output(model, old, op.node("GATHER", [table, ids], shape_of(old), table.dtype, axis=0))
    graph.remove(node, safe=True)


def _as_float32(model: Model, graph: ir.Graph, node: ir.Node, value: ir.Value) -> ir.Value:
    """The constant `value` as float32; one constant a graph."""
    if not is_constant(value):
        raise ModelError(
            f"{model.locate(graph, node)}: {value.name} is {value.dtype}: onert needs "
            f"float32 or a constant here"
        )
    name = f"{value.name}/float32"
    if name in graph.initializers:
        return graph.initializers[name]
    return add_constant(graph, np.asarray(dequantized(value), np.float32), name)
