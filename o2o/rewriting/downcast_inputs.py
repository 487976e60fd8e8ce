"""Downcast of int64 graph inputs to int32, which runtimes and their callers prefer."""

from __future__ import annotations

import onnx_ir as ir

from o2o.errors import ModelError
from o2o.formats.schema import DIALECTS
from o2o.model import DOMAIN, Model, dtype_name, owners
from o2o.operators.traits import is_cast, traits_of
from o2o.rewriting.onnx_builder import builder_for
from o2o.rewriting.rewire import replace_graph_output

INT32, INT64 = ir.DataType.INT32, ir.DataType.INT64


def downcast_input(model: Model, graph: ir.Graph, value: ir.Value) -> int:
    """Make an int64 input int32, and adapt its users.

    Lookups take either width. A CAST to int32 goes; another CAST is adjusted. All other users read one new
    CAST back to int64, and so does an output that is the input itself.

    Args:
        model: The model of `graph`.
        graph: Changed in place.
        value: An int64 input of `graph`.

    Returns:
        The number of CASTs inserted: 0 or 1.

    Raises:
        ModelError: `value` is not int64.
    """
    label = f"{model.label(graph)}: {value.name}"
    if value.dtype != INT64:
        raise ModelError(f"{label} is {dtype_name(value)}, not int64")
    value.type = ir.TensorType(INT32)
    outer = owners(graph)
    int64_uses = []
    for use in value.uses():
        if is_cast(use.node):
            result = use.node.outputs[0]
            if result.dtype == INT32 and not result.is_graph_output():
                result.replace_all_uses_with(value)
                assert use.node.graph is not None
                use.node.graph.remove(use.node, safe=True)
            elif use.node.domain == DOMAIN:
                code = DIALECTS[model.format].dtype_codes[INT32]
                use.node.attributes["inDataType"] = ir.AttrInt64("inDataType", code)
        elif use.idx != traits_of(use.node).index:
            int64_uses.append(use)
    if not int64_uses and not value.is_graph_output():
        return 0
    users = {outer.get(id(use.node.graph), use.node) for use in int64_uses}
    op = builder_for(graph, before=next((node for node in graph if node in users), None))
    wide = op.cast(value, INT64, f"{value.name}_int64")
    for use in int64_uses:
        use.node.replace_input_with(use.idx, wide)
    if value.is_graph_output():
        replace_graph_output(model, graph, value, wide)
    return 1
