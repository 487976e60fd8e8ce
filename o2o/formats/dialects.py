"""Conversion between Circle and TFLite, without loss.

Graphs of both dialects look the same in the IR. Conversion checks that the other dialect has every operator
and option, and renumbers tensor types in options. The types of tensors are checked when they are written.
"""

from __future__ import annotations

import onnx_ir as ir

from o2o.errors import ModelError
from o2o.formats.schema import DIALECTS, Dialect
from o2o.model import CUSTOM_DOMAIN, Format, Model

# Options whose value is a tensor type, by their names in the schema.
TYPE_OPTIONS = {
    *("inDataType", "outDataType", "outputType", "outType", "idxOutType", "keyDtype", "valueDtype"),
}


def convert(model: Model, to: Format) -> None:
    """Convert a model to the other dialect.

    Args:
        model: The model, changed in place.
        to: The new format.

    Raises:
        ModelError: The new format lacks an operator, option or tensor type; the message names it and its
            place.
    """
    old, new = DIALECTS[model.format], DIALECTS[to]
    if old is new:
        return
    for graph in model.graphs:
        for node in graph:
            if node.domain != CUSTOM_DOMAIN and node.op_type not in new.operator_codes:
                raise ModelError(f"{new.name} has no operator {model.locate(graph, node)}")
            _convert_options(model.locate(graph, node), node, old, new)
    model.format = to
    model.fields.pop("version", None)


def _convert_options(where: str, node: ir.Node, old: Dialect, new: Dialect) -> None:
    operator = "CUSTOM" if node.domain == CUSTOM_DOMAIN else node.op_type
    table = node.meta.get("options", new.options_table(operator))
    if table is None:
        return
    if not new.has_table(table):
        raise ModelError(f"{where}: {new.name} has no options {table}")
    option_names = {new.ir_field(table, name) for name in vars(new.table(table)())}
    fields = node.meta.get("fields", {})
    others = {key.removeprefix("options.") for key in fields if key.startswith("options.")}
    for name in (*node.attributes, *others):
        if name not in option_names:
            raise ModelError(f"{where}: {new.name} has no option {name}")
    for name in TYPE_OPTIONS & node.attributes.keys():
        code = int(node.attributes[name].value)
        dtype = old.dtypes.get(code)
        if dtype is not None and dtype not in new.dtype_codes:
            raise ModelError(f"{where}: {new.name} has no tensor type {dtype} (option {name})")
        if dtype is not None:
            node.attributes[name] = ir.AttrInt64(name, new.dtype_codes[dtype])
    layout = node.attributes.get("weightsFormat")
    if layout is not None and layout.value not in new.enum("FullyConnectedOptionsWeightsFormat").values():
        raise ModelError(f"{where}: {new.name} has no weights format {layout.value}")
