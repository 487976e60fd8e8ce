"""Making an int64 input int32, which is what runtimes and their callers like."""

from __future__ import annotations

import onnx_ir as ir

from o2o.errors import ModelError
from o2o.formats.schema import DIALECTS
from o2o.model import DOMAIN, Model, dtype_name, shape_of
from o2o.operators.facts import facts_of
from o2o.rewriting.builder import Builder

INT32, INT64 = ir.DataType.INT32, ir.DataType.INT64


def downcast_input(model: Model, graph: ir.Graph, value: ir.Value) -> bool:
    """Make the int64 input `value` int32 and let its users agree; whether one needs int64 through a new CAST.

    Raises ModelError for an input that is also an output, or is no integer of 64 bits.
    """
    told = f"{model.label(graph)}: {value.name}"
    if value.dtype != INT64:
        raise ModelError(f"{told} is {dtype_name(value)}, not int64")
    if value.is_graph_output():
        raise ModelError(f"{told} cannot become int32: it is also an output")
    code = DIALECTS[model.format].dtype_codes[INT32]
    value.type = ir.TensorType(INT32)
    others = []
    for use in value.uses():
        if use.node.domain != DOMAIN:
            others.append(use)
        elif use.node.op_type == "CAST":
            result = use.node.outputs[0]
            if result.dtype == INT32 and not result.is_graph_output():
                result.replace_all_uses_with(value)
                graph.remove(use.node, safe=True)
            else:
                use.node.attributes["inDataType"] = ir.AttrInt64("inDataType", code)
        elif use.idx != facts_of(use.node).index:  # lookups take either width
            others.append(use)
    if not others:
        return False
    users = {use.node for use in others}
    op = Builder(graph, before=next(node for node in graph if node in users))
    codes = {"inDataType": code, "outDataType": DIALECTS[model.format].dtype_codes[INT64]}
    wide = op.node("CAST", [value], shape_of(value), INT64, f"{value.name}_int64", **codes)
    for use in others:
        use.node.replace_input_with(use.idx, wide)
    return True
