"""One ONNX graph of several, which become its branches: see `o2o.formats.onnx_branches`."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Sequence
from functools import reduce
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from o2o.errors import ModelError
from o2o.formats.onnx_branches import (
    VERSION,
    Part,
    Selector,
    choose_selector,
    dims_in,
    united,
)
from o2o.formats.onnx_names import all_names, graphs_in, rename, used_names
from o2o.model import unique_name

RENAME = "rename.io.py gives one of them another name"
_Key = Callable[[onnx.TensorProto], Hashable]


def compose(parts: Sequence[Part], key: _Key) -> tuple[onnx.GraphProto, str]:
    """Make one graph, whose branches are the graphs of a model.

    Args:
        parts: The graphs, changed in place.
        key: Identifies the data of a large constant; None for a small one.

    Returns:
        The graph, and the metadata entry that `split` needs.

    Raises:
        ModelError: Inputs or outputs of one name have different types, or an input of one graph is an output
            of another.
    """
    outer = onnx.GraphProto(name="main")
    inputs, outputs = united(parts, "input"), united(parts, "output")
    for part in parts:
        if clash := next((name for name in part.outputs if name in inputs), None):
            raise ModelError(
                f"{clash} is an output of {part.label}, and an input of the merged model: {RENAME}"
            )
        _name_constant_outputs(part)
    selector = choose_selector(parts, set(inputs) | set(outputs))
    symbols = _Symbols(parts)
    for name, owners in inputs.items():
        outer.input.add().CopyFrom(symbols.joined(name, owners, "input"))
        _move_default(outer, name, owners)
    taken = {*inputs, *outputs}
    if selector.input is not None:
        taken.add(selector.input)
        kind = onnx.TensorProto.BOOL if selector.is_flag else onnx.TensorProto.INT64
        outer.input.append(onnx.helper.make_tensor_value_info(selector.input, kind, [1]))
    shared = _share_constants(outer, parts, key, taken)
    conditions = _conditions(outer, selector, taken)
    infos = [symbols.joined(name, owners, "output") for name, owners in outputs.items()]
    outer.output.extend(infos)
    branches = [_branch(part, infos, taken, renamed) for part, renamed in zip(parts, shared, strict=True)]
    order = list(selector.order)
    inner = branches[order.pop()]
    for index, condition in reversed(list(zip(order, conditions, strict=True))):
        node = onnx.helper.make_node(
            "If", [condition], list(outputs), then_branch=branches[index], else_branch=inner
        )
        if index != order[0]:
            inner = onnx.GraphProto(
                name="else",
                node=[node],
                output=[onnx.ValueInfoProto.FromString(info.SerializeToString()) for info in infos],
            )
        else:
            outer.node.append(node)
    record = {
        "version": VERSION,
        "selected_by": selector.as_json(),
        "order": selector.order,
        "signatures": [part.as_json() for part in parts],
    }
    return outer, json.dumps(record, separators=(",", ":"))


def _name_constant_outputs(part: Part) -> None:
    """Let nodes compute the outputs that are constants."""
    graph = part.graph
    constants = {tensor.name for tensor in graph.initializer} & part.outputs.keys()
    taken = all_names(graph)
    renamed = {name: unique_name(f"{name}_constant", taken) for name in part.outputs if name in constants}
    for tensor in graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    nodes = [onnx.helper.make_node("Identity", [new], [old]) for old, new in renamed.items()]
    for node in reversed(nodes):
        graph.node.insert(0, node)
    part.constants = list(renamed)


class _Symbols:
    """Names of the dimensions that differ between graphs. Equal differences get one name."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._names: dict[Hashable, str] = {}
        self._count = len(parts)
        values = [value for part in parts for value in (*part.graph.input, *part.graph.output)]
        self._taken = {dim for value in values for dim in dims_in(value) or () if isinstance(dim, str)}

    def joined(self, name: str, owners: Sequence[Part], side: str) -> onnx.ValueInfoProto:
        """The declaration of an input or output that holds for all graphs that have it."""
        infos = [getattr(part, f"{side}s")[name] for part in owners]
        first = infos[0]
        absent = side == "output" and len(owners) < self._count
        if len(owners) == 1 and not absent:
            return first
        _refuse_other_types(name, side, owners, infos)
        result = onnx.ValueInfoProto(name=name, type=first.type)
        each = [dims_in(info) for info in infos]
        known = [dims for dims in each if dims is not None]
        if first.type.WhichOneof("value") != "tensor_type":
            return result
        result.type.tensor_type.ClearField("shape")
        if len(known) == len(each) and len({len(dims) for dims in known}) == 1:
            result.type.tensor_type.shape.SetInParent()
            for axis, sizes in enumerate(zip(*known, strict=True)):
                dim = result.type.tensor_type.shape.dim.add()
                joined = self._dim(name, axis, owners, (*sizes, "") if absent else sizes)
                if isinstance(joined, int):
                    dim.dim_value = joined
                elif joined is not None:
                    dim.dim_param = joined
        return result

    def _dim(
        self, name: str, axis: int, owners: Sequence[Part], sizes: Sequence[int | str | None]
    ) -> int | str | None:
        if len(set(sizes)) == 1:
            return sizes[0]
        if None in sizes:
            return None
        key = tuple((id(part), size) for part, size in zip(owners, sizes, strict=False))
        if key not in self._names:
            self._names[key] = unique_name(f"{name}_{axis}", self._taken)
        return self._names[key]


def _refuse_other_types(
    name: str, side: str, owners: Sequence[Part], infos: Sequence[onnx.ValueInfoProto]
) -> None:
    for part, info in zip(owners, infos, strict=True):
        a, b = (_type_text(each) for each in (infos[0], info))
        if a != b:
            raise ModelError(
                f"the {side} {name} is {a} in {owners[0].label}, and {b} in {part.label}: {RENAME}"
            )
        ranks = [len(dims) for each in (infos[0], info) if (dims := dims_in(each)) is not None]
        if side == "input" and len(set(ranks)) > 1:
            raise ModelError(
                f"the input {name} has {ranks[0]} dimensions in {owners[0].label}, and {ranks[1]} in "
                f"{part.label}: {RENAME}"
            )


def _type_text(info: onnx.ValueInfoProto) -> str:
    kind = info.type.WhichOneof("value")
    if kind == "tensor_type":
        return str(onnx.TensorProto.DataType.Name(info.type.tensor_type.elem_type).lower())
    return " ".join(str(info.type).split())


def _move_default(outer: onnx.GraphProto, name: str, owners: Sequence[Part]) -> None:
    """Move the default of an input to the outer graph."""
    default = None
    for part in owners:
        tensor = next((t for t in part.graph.initializer if t.name == name), None)
        if tensor is None:
            continue
        if default is not None and default.SerializeToString() != tensor.SerializeToString():
            raise ModelError(f"the input {name} has another default in {part.label}: {RENAME}")
        default = onnx.TensorProto.FromString(tensor.SerializeToString())
        part.graph.initializer.remove(tensor)
        part.defaults.append(name)
    if default is not None:
        outer.initializer.append(default)


def _conditions(outer: onnx.GraphProto, selector: Selector, taken: set[str]) -> list[str]:
    """Add what computes the condition of each branch but the last one. Return the names of the conditions."""
    if selector.input is not None and selector.is_flag:
        return [selector.input]

    def add(op_type: str, inputs: list[str], name: str) -> str:
        result = unique_name(name, taken)
        outer.node.append(onnx.helper.make_node(op_type, inputs, [result]))
        return result

    def number(numbers: list[int], name: str) -> str:
        constant = unique_name(name, taken)
        outer.initializer.append(numpy_helper.from_array(np.array(numbers, np.int64), constant))
        return constant

    sizes = [
        add("Gather", [add("Shape", [name], "selecting_shape"), number([axis], "axis")], "selecting_size")
        for name, axis in selector.axes
    ]
    compared = [selector.input] if selector.input is not None else sizes
    conditions = []
    for index in selector.order[:-1]:
        expected = selector.sizes[index] if selector.input is None else [index]
        tests = [
            add("Equal", [name, number([size], "selecting")], "selected")
            for name, size in zip(compared, expected, strict=True)
            if size is not None
        ]
        conditions.append(reduce(lambda a, b: add("And", [a, b], "selected"), tests))
    return conditions


def _share_constants(
    outer: onnx.GraphProto, parts: Sequence[Part], key: _Key, taken: set[str]
) -> list[dict[str, str]]:
    """Move large constants to the outer graph, equal ones once. Return their new names by part."""
    names: dict[Hashable, str] = {}
    renamed: list[dict[str, str]] = []
    for part in parts:
        used = used_names(part.graph) - _dequantized_names(part.graph)
        here: dict[str, str] = {}
        rest = []
        for tensor in part.graph.initializer:
            of_data = key(tensor) if tensor.name in used else None
            if of_data is None:
                rest.append(onnx.TensorProto.FromString(tensor.SerializeToString()))
                continue
            of_data = (of_data, tensor.data_type, tuple(tensor.dims))
            if of_data not in names:
                names[of_data] = unique_name(tensor.name, taken)
                outer.initializer.add().CopyFrom(tensor)
                outer.initializer[-1].name = names[of_data]
            here[tensor.name] = names[of_data]
        del part.graph.initializer[:]
        part.graph.initializer.extend(rest)
        renamed.append(here)
    return renamed


def _dequantized_names(graph: onnx.GraphProto) -> set[str]:
    """The operands of DequantizeLinear, which must be in its own graph.

    ONNX Runtime 1.31 refuses a model whose DequantizeLinear takes a constant of an outer graph.
    """
    names: set[str] = set()
    for node in graph.node:
        if node.op_type == "DequantizeLinear":
            names.update(node.input)
        for inner in graphs_in(node):
            names |= _dequantized_names(inner)
    return names


def _branch(
    part: Part, outputs: Sequence[onnx.ValueInfoProto], reserved: set[str], renamed: dict[str, str]
) -> onnx.GraphProto:
    """The graph of a part as a branch: without inputs, with the outputs of all parts."""
    branch = onnx.GraphProto()
    branch.CopyFrom(part.graph)
    del branch.input[:]
    captured = {name: name for name in part.inputs}  # they may have the names of outer values
    rename(branch, {**captured, **renamed}, reserved - part.outputs.keys())
    own = {info.name: onnx.ValueInfoProto.FromString(info.SerializeToString()) for info in branch.output}
    taken = all_names(branch) | reserved
    del branch.output[:]
    for info in outputs:
        if info.name in own:
            branch.output.add().CopyFrom(own[info.name])
            continue
        filler = unique_name(f"{info.name}_absent", taken)
        branch.node.append(_filler(info, filler, part.label))
        branch.output.add().CopyFrom(onnx.ValueInfoProto(name=filler, type=_filler_type(info)))
    branch.value_info.extend(part.graph.input)
    return branch


def _filler(info: onnx.ValueInfoProto, name: str, label: str) -> onnx.NodeProto:
    """A Constant without elements, for an output that a branch lacks."""
    dims = dims_in(info)
    if info.type.WhichOneof("value") != "tensor_type":
        raise ModelError(f"{label} lacks the output {info.name}, which is no tensor: it cannot be merged")
    shape = [0] * len(dims or [0])
    kind = info.type.tensor_type.elem_type
    if not shape:
        zero: Any = b"" if kind == onnx.TensorProto.STRING else 0
        tensor = onnx.helper.make_tensor(name, kind, [], [zero])
    else:
        tensor = onnx.TensorProto(name=name, data_type=kind, dims=shape)
    return onnx.helper.make_node("Constant", [], [name], value=tensor)


def _filler_type(info: onnx.ValueInfoProto) -> onnx.TypeProto:
    dims = dims_in(info)
    return onnx.helper.make_tensor_type_proto(info.type.tensor_type.elem_type, [0] * len(dims or [0]))
