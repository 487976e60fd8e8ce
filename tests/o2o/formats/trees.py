"""Files as the generated schemas see them: to compare two without regard to numbering, and to make any.

`canonical(data)` is the whole file as nested dictionaries, in which tensors, buffers, operator codes and
metadata are what they are rather than a number. Equal trees mean the same file.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flatbuffers
import numpy as np

from o2o.contract import METADATA_NAME as CONTRACT
from o2o.formats.schema import DIALECTS, Dialect, detect
from o2o.history import METADATA_NAME as HISTORY

UNIONS = {
    "details": "QuantizationDetails",
    "arraySegments": "SparseIndexVector",
    "arrayIndices": "SparseIndexVector",
    "builtinOptions": "BuiltinOptions",
    "builtinOptions2": "BuiltinOptions2",
}

REFERENCES = ("scales", "zeroPoints")  # of the quantization details: tensor numbers


def unpack(data: bytes) -> Any:
    return detect(memoryview(data), "test").table("Model").InitFromPackedBuf(data, 0)


def pack(table: Any, dialect: Dialect) -> bytes:
    """The file that the generated schema makes of `table`: data before the tables that refer to it."""
    builder = flatbuffers.Builder(1024)
    builder.Finish(table.Pack(builder), dialect.identifier)
    return bytes(builder.Output())


def repacked(data: bytes) -> bytes:
    """The same file as other tools write it."""
    return pack(unpack(data), detect(memoryview(data), "test"))


def canonical(data: bytes) -> dict[str, Any]:
    root = unpack(data)
    buffers = [_buffer(table, data) for table in root.buffers or ()]
    numbers: dict[int, int] = {}  # of buffers, in the order in which tensors use them

    def buffer(index: int) -> Any:
        if buffers[index] is None:
            return None
        return numbers.setdefault(index, len(numbers)), buffers[index]

    codes = [_code(code) for code in root.operatorCodes or ()]
    orders = [_order(graph, buffers) for graph in root.subgraphs]
    tree = _plain(root, skip={"operatorCodes", "subgraphs", "buffers", "metadata", "signatureDefs"})
    tree["metadataBuffer"] = [buffers[index] for index in _list(root.metadataBuffer)]
    tree["metadata"] = [
        (name, buffers[entry.buffer])
        for entry in root.metadata or ()
        if (name := _text(entry.name)) not in (CONTRACT, HISTORY)
    ]
    tree["subgraphs"] = [
        _subgraph(graph, order, buffer, codes) for graph, order in zip(root.subgraphs, orders, strict=True)
    ]
    tree["signatureDefs"] = [
        {
            "key": _text(signature.signatureKey),
            "graph": signature.subgraphIndex,
            "inputs": _map(signature.inputs, orders[signature.subgraphIndex]),
            "outputs": _map(signature.outputs, orders[signature.subgraphIndex]),
        }
        for signature in root.signatureDefs or ()
    ]
    return tree


def _subgraph(graph: Any, order: dict[int, int], buffer: Callable[[int], Any], codes: list[Any]) -> Any:
    tree = _plain(graph, skip={"tensors", "operators", "inputs", "outputs"})
    tree["inputs"] = _renumbered(graph.inputs, order)
    tree["outputs"] = _renumbered(graph.outputs, order)
    tree["tensors"] = [_tensor(graph.tensors[index], order, buffer) for index in order]
    tree["operators"] = []
    for operator in graph.operators or ():
        lists = ("inputs", "outputs", "intermediates")
        entry = _plain(operator, skip={"opcodeIndex", *lists})
        entry |= {field: _renumbered(getattr(operator, field), order) for field in lists}
        tree["operators"].append({"code": codes[operator.opcodeIndex], **entry})
    return tree


def _tensor(tensor: Any, order: dict[int, int], buffer: Callable[[int], Any]) -> Any:
    tree = _plain(tensor, skip={"buffer"})
    tree["buffer"] = buffer(tensor.buffer)
    details = tree["quantization"] and tree["quantization"]["details"]
    for field in REFERENCES:
        if details and details.get(field, 0) > 0:
            details[field] = order[details[field]]
    return tree


def _order(graph: Any, buffers: list[Any]) -> dict[int, int]:
    """Tensor numbers, old to canonical: in the order of use, and what is unused by what it is."""
    result: dict[int, None] = dict.fromkeys(_list(graph.inputs))
    for operator in graph.operators or ():
        for field in (operator.inputs, operator.outputs, operator.intermediates):
            result |= dict.fromkeys(index for index in _list(field) if index >= 0)
    result |= dict.fromkeys(_list(graph.outputs))
    for index in list(result):
        details = getattr(graph.tensors[index].quantization, "details", None)
        result |= dict.fromkeys(n for field in REFERENCES if (n := getattr(details, field, 0)) > 0)
    rest = [index for index in range(len(graph.tensors or ())) if index not in result]
    rest.sort(
        key=lambda k: repr((_plain(graph.tensors[k], skip={"buffer"}), buffers[graph.tensors[k].buffer]))
    )
    return {index: number for number, index in enumerate([*result, *rest])}


def _renumbered(vector: Any, order: dict[int, int]) -> list[int]:
    return [order[index] if index >= 0 else -1 for index in _list(vector)]


def _map(entries: Any, order: dict[int, int]) -> list[tuple[str | None, int]]:
    return [(_text(entry.name), order[entry.tensorIndex]) for entry in entries or ()]


def _code(code: Any) -> tuple[int, str | None, int]:
    return code.builtinCode or code.deprecatedBuiltinCode, _text(code.customCode), code.version


def _buffer(table: Any, data: bytes) -> bytes | None:
    if table.offset > 1:
        return data[table.offset : table.offset + table.size]
    return None if table.data is None or len(table.data) == 0 else bytes(table.data)


def _plain(item: Any, skip: set[str] | frozenset[str] = frozenset()) -> Any:
    """A table as a dictionary, a vector as a list; a list that is absent counts as empty."""
    if isinstance(item, (np.ndarray, list)):
        return [_plain(x) for x in item]
    if isinstance(item, np.generic):
        return item.item()
    if hasattr(item, "__dict__"):
        fields = {key: _plain(value) for key, value in vars(item).items() if key not in skip}
        return {"table": type(item).__name__, **fields}
    return _text(item)


def _text(item: Any) -> Any:
    return item.decode() if isinstance(item, bytes) else item


def _list(vector: Any) -> list[int]:
    return [] if vector is None else [int(x) for x in vector]


# ----------------------------------------------------------------------------------------------------


def field_types(table: type[Any]) -> dict[str, str]:
    """The declared type of each field, from the comments in the generated code: `int`, `Foo`, `[Foo]`, ..."""
    source = inspect.getsource(table.__init__)
    result = {}
    for field, text in re.findall(r"self\.(\w+) = .*?# type: (.*)", source):
        text = re.sub(r"[\w.]+\.(\w+)", r"\1", text.replace("'", ""))  # no packages
        text = re.sub(r"^Optional\[(.*)\]$", r"\1", text)
        result[field] = re.sub(r"^List\[(.*)\]$", r"[\1]", text)
    return result


def filled(dialect: Dialect, name: str, members: Sequence[str] = ()) -> Any:
    """A table `name` in which every field is set, to other than its default. `members` of unions go first."""
    table = dialect.table(name)()
    for number, (field, kind) in enumerate(field_types(type(table)).items()):
        if not field.endswith("Type") or f"{field[:-4]}" not in vars(table):
            setattr(table, field, _filling(dialect, table, field, kind, number, members))
    return table


def _filling(dialect: Dialect, table: Any, field: str, kind: str, number: int, members: Sequence[str]) -> Any:
    default = getattr(table, field)
    if kind.startswith("Union["):
        choices = [name.strip().removesuffix("T") for name in kind[6:-1].split(",")][1:]
        chosen = next((name for name in members if name in choices), choices[-1])
        setattr(table, f"{field}Type", dialect.enum(UNIONS[field])[chosen])
        return filled(dialect, chosen, members)
    scalars: dict[str, Any] = {
        "int": default + 1 if isinstance(default, int) else 1,
        "bool": not default,
        "float": 0.5 + number,
        "str": f"text {number}",
        "[int]": [1, 0, 1],
        "[float]": [0.5, 1.5],
        "[bool]": [True, False],
    }
    if kind in scalars:
        return scalars[kind]
    if kind.startswith("["):
        return [filled(dialect, kind[1:-2], members)]
    return filled(dialect, kind.removesuffix("T"), members)


def operators_with_options(dialect: Dialect) -> Iterator[tuple[str, str | None]]:
    """Every builtin operator of the dialect, with the options table that goes with it."""
    for operator in dialect.operator_codes:
        if operator != "CUSTOM":
            yield operator, dialect.options_table(operator)


__all__ = [
    "DIALECTS",
    "canonical",
    "field_types",
    "filled",
    "operators_with_options",
    "pack",
    "repacked",
    "unpack",
]
