"""From one dialect to the other, where nothing is lost on the way.

Graphs are the same in the IR. What is left to do is to see that the other dialect has every operator and
option, and to renumber the tensor types that options hold. Tensors are seen to when they are written.
"""

from __future__ import annotations

import onnx_ir as ir

from o2o.errors import ModelError
from o2o.formats.schema import DIALECTS, Dialect
from o2o.model import CUSTOM_DOMAIN, Format, Model

# Options that are a tensor type, by their names in Circle's tables.
TYPE_OPTIONS = {
    *("inDataType", "outDataType", "outputType", "outType", "idxOutType", "keyDtype", "valueDtype"),
}


def convert(model: Model, to: Format) -> None:
    """Make `model` one of the format `to`. Raises ModelError that names what this format lacks, and where."""
    old, new = DIALECTS[model.format], DIALECTS[to]
    if old is new:
        return
    for graph in model.graphs:
        for node in graph:
            if node.domain != CUSTOM_DOMAIN and node.op_type not in new.operator_codes:
                raise ModelError(f"{new.name} has no operator {called(model, graph, node)}")
            _convert_options(f"{called(model, graph, node)}", node, old, new)
    model.format = to
    model.fields.pop("version", None)


def _convert_options(where: str, node: ir.Node, old: Dialect, new: Dialect) -> None:
    operator = "CUSTOM" if node.domain == CUSTOM_DOMAIN else node.op_type
    table = node.meta.get("options", new.options_table(operator))
    if table is None:
        return
    if not new.has_table(table):
        raise ModelError(f"{where}: {new.name} has no options {table}")
    known = {new.ir_field(table, name) for name in vars(new.table(table)())}
    told = {key.removeprefix("options.") for key in node.meta.get("fields", {}) if key.startswith("options.")}
    for name in (*node.attributes, *told):
        if name not in known:
            raise ModelError(f"{where}: {new.name} has no option {name}")
    for name in TYPE_OPTIONS & node.attributes.keys():
        code = int(node.attributes[name].value)
        dtype = old.dtypes.get(code)
        if dtype is not None and dtype not in new.dtype_codes:
            raise ModelError(f"{where}: {new.name} has no tensor type {dtype}, which is its option {name}")
        if dtype is not None:
            node.attributes[name] = ir.AttrInt64(name, new.dtype_codes[dtype])
    layout = node.attributes.get("weightsFormat")
    if layout is not None and layout.value not in new.enum("FullyConnectedOptionsWeightsFormat").values():
        raise ModelError(f"{where}: {new.name} has no weights format {layout.value}")


def called(model: Model, graph: ir.Graph, node: ir.Node) -> str:
    """`node` in a message: its operator, its place, and the module of the model that it comes from."""
    name = next((value.name for value in node.outputs if value.name), "?")
    module = _module(name)
    return f"{node.op_type} ({name} in {model.label(graph)}{f', module {module}' if module else ''})"


def _module(name: str) -> str:
    """The module that a tensor's name tells (`export.tensor_names`), "" where it tells none."""
    module, slash, _ = name.partition("/")
    return module if slash or "." in module else ""
