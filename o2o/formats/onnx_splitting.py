"""The graphs of an ONNX file whose branches they are: undoes `o2o.formats.onnx_composition`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import onnx

from o2o import metadata
from o2o.formats.onnx_branches import METADATA_NAME, VERSION, Part
from o2o.formats.onnx_names import defined_names, used_names


def split(graph: onnx.GraphProto, record: str) -> list[Part] | None:
    """Take the branches of a composed graph apart.

    Args:
        graph: The graph.
        record: Its metadata entry `o2o.signatures`.

    Returns:
        The graphs in the order of the metadata. None if another tool has changed the graph, so that it no
        longer fits its metadata.

    Raises:
        ModelError: The metadata is damaged.
    """
    content = metadata.parse(METADATA_NAME, record, VERSION)
    with metadata.reports_damage(METADATA_NAME):
        entries, order = list(content["signatures"]), [int(index) for index in content["order"]]
        branches = list(_branches(graph, len(entries)))
        if len(branches) != len(entries) or sorted(order) != list(range(len(entries))):
            return None
        outputs = [info.name for info in graph.output]
        parts: dict[int, Part] = {}
        for index, branch in zip(order, branches, strict=True):
            part = _part(graph, branch, entries[index], outputs)
            if part is None:
                return None
            parts[index] = part
    return [parts[index] for index in range(len(entries))]


def _branches(graph: onnx.GraphProto, count: int) -> Iterator[onnx.GraphProto]:
    """The branches of nested Ifs, in the order in which they are tried."""
    for _ in range(count - 1):
        nodes = [node for node in graph.node if node.op_type == "If" and not node.domain]
        if len(nodes) != 1:
            return
        inner = {attribute.name: attribute.g for attribute in nodes[0].attribute}
        if inner.keys() != {"then_branch", "else_branch"}:
            return
        yield inner["then_branch"]
        graph = inner["else_branch"]
    yield graph


def _part(
    outer: onnx.GraphProto, branch: onnx.GraphProto, entry: dict[str, Any], outputs: Sequence[str]
) -> Part | None:
    """The graph of a branch, with inputs, outputs and constants; None if it does not fit its entry."""
    graph = onnx.GraphProto()
    graph.CopyFrom(branch)
    wanted_inputs, wanted = [str(n) for n in entry["inputs"]], [str(n) for n in entry["outputs"]]
    declared = graph.value_info[len(graph.value_info) - len(wanted_inputs) :]
    if [info.name for info in declared] != wanted_inputs or len(graph.output) != len(outputs):
        return None
    graph.input.extend(declared)
    del graph.value_info[len(graph.value_info) - len(wanted_inputs) :]
    returned = dict(zip(outputs, list(graph.output), strict=True))
    fillers = {info.name for name, info in returned.items() if name not in wanted}
    if any(name not in returned or returned[name].name != name for name in wanted):
        return None
    infos = [onnx.ValueInfoProto.FromString(returned[name].SerializeToString()) for name in wanted]
    del graph.output[:]
    graph.output.extend(infos)
    for node in [node for node in graph.node if fillers.intersection(node.output)]:
        graph.node.remove(node)
    copied = _take_copies(graph, [str(name) for name in entry.get("constants", ())])
    if copied is None:
        return None
    names, own = used_names(graph), defined_names(graph)
    defaults = [str(name) for name in entry.get("defaults", ())]
    constants = {tensor.name: tensor for tensor in (*outer.initializer, *branch.initializer)}
    initializers = [
        tensor
        for tensor in outer.initializer
        if (tensor.name in names and tensor.name not in own) or tensor.name in defaults
    ]
    taken_back = {source for source in copied.values() if source not in names}
    initializers += [tensor for tensor in branch.initializer if tensor.name not in taken_back]
    for name, source in copied.items():
        if source not in constants:
            return None
        tensor = onnx.TensorProto.FromString(constants[source].SerializeToString())
        tensor.name = name
        initializers.append(tensor)
    del graph.initializer[:]
    graph.initializer.extend(initializers)
    return Part([str(name) for name in entry["names"]], graph)


def _take_copies(graph: onnx.GraphProto, names: Sequence[str]) -> dict[str, str] | None:
    """Remove the nodes that copy constants to outputs. Return the constants by output; None if one lacks."""
    copied = {}
    for name in names:
        node = next((node for node in graph.node if list(node.output) == [name]), None)
        if node is None or node.op_type != "Identity":
            return None
        copied[name] = node.input[0]
        graph.node.remove(node)
    return copied
