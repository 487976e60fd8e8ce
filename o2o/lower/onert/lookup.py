"""Constants that are stored in fewer bits and looked up or widened: onert looks up float32 rows only, and its
DEQUANTIZE takes the first scale for all. They become float32 here."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from o2o.errors import ModelError
from o2o.formats.dialects import called
from o2o.formats.tensors import is_constant, is_quantized
from o2o.model import Model, shape_of
from o2o.operators.facts import lookup_operands
from o2o.quantization.compare import dequantized
from o2o.rewriting.builder import Builder, add_constant
from o2o.rewriting.rewire import replace_output

_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def legalize_lookup(model: Model, graph: ir.Graph, node: ir.Node) -> None:
    """EMBEDDING_LOOKUP becomes GATHER; the table of either float32."""
    lookup = lookup_operands(node)
    assert lookup is not None
    table, ids = lookup
    old = node.outputs[0]
    narrow = is_quantized(table) or table.dtype in _HALVES
    if not narrow and node.op_type == "GATHER":
        return
    if is_quantized(old) or old.dtype != ir.DataType.FLOAT:
        if old.dtype not in _HALVES or not all(use.node.op_type == "DEQUANTIZE" for use in old.uses()):
            raise ModelError(f"{called(model, graph, node)} gives quantised rows, which onert cannot look up")
        for use in list(old.uses()):  # of a table in halves, rows are widened: they are float32 already
            old, widening = use.node.outputs[0], use.node
            _gather(model, graph, widening, ids, _widened(model, graph, node, table), old)
        return
    _gather(model, graph, node, ids, _widened(model, graph, node, table) if narrow else table, old)


def legalize_dequantize(model: Model, graph: ir.Graph, node: ir.Node) -> None:
    """DEQUANTIZE of a constant becomes a constant."""
    (x,) = node.inputs
    assert x is not None
    replace_output(model, node.outputs[0], _widened(model, graph, node, x))
    graph.remove(node, safe=True)


def _gather(
    model: Model, graph: ir.Graph, node: ir.Node, ids: ir.Value, table: ir.Value, old: ir.Value
) -> None:
    op = Builder(graph, before=node)
    replace_output(model, old, op.node("GATHER", [table, ids], shape_of(old), table.dtype, axis=0))
    graph.remove(node, safe=True)


def _widened(model: Model, graph: ir.Graph, node: ir.Node, value: ir.Value) -> ir.Value:
    """The constant `value` as float32, once a graph."""
    if not is_constant(value):
        raise ModelError(f"{called(model, graph, node)}: {value.name} is {value.dtype} and no constant")
    name = f"{value.name}/float32"
    if name in graph.initializers:
        return graph.initializers[name]
    return add_constant(graph, np.asarray(dequantized(value), np.float32), name)
