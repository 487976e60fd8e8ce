"""Names of values in an ONNX message: which ones it has, and how to give them others.

Names have scopes: a graph in an attribute sees those of the graphs around it. A graph that defines a name of
its own does not see the outer value of that name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx

from o2o.model import unique_name


def graphs_in(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs in the attributes of a node.

    Args:
        node: The node.

    Yields:
        Each graph, without those inside it.
    """
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def defined_names(graph: onnx.GraphProto) -> set[str]:
    """Return the names that a graph gives to values.

    Args:
        graph: The graph.

    Returns:
        The names of its inputs, constants and results, without those of graphs inside it.
    """
    names = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    names |= {sparse.values.name for sparse in graph.sparse_initializer}
    return names | {name for node in graph.node for name in node.output if name}


def all_names(graph: onnx.GraphProto) -> set[str]:
    """Return every name in a graph and in the graphs inside it, defined or used.

    Args:
        graph: The graph.

    Returns:
        The names.
    """
    names = defined_names(graph)
    for node in graph.node:
        names |= {*node.input, *node.output}
        for inner in graphs_in(node):
            names |= all_names(inner)
    return names


def used_names(graph: onnx.GraphProto) -> set[str]:
    """Return the names of outer values that a graph uses, and of its own that its nodes use.

    Args:
        graph: The graph.

    Returns:
        The operands of its nodes, and what graphs inside them use without defining it.
    """
    names: set[str] = set()
    for node in graph.node:
        names.update(node.input)
        for inner in graphs_in(node):
            captured = used_names(inner) | {value.name for value in inner.output}
            names |= captured - defined_names(inner)
    return names


def rename(graph: onnx.GraphProto, names: Mapping[str, str], reserved: set[str]) -> None:
    """Rename values of a graph, also where graphs inside it use them.

    Args:
        graph: The graph, changed in place.
        names: New names by old ones, of its own values or of outer values that it uses.
        reserved: Names of outer values. A value inside the graph that has one gets another name.
    """
    _rename(graph, names, reserved, all_names(graph) | reserved)


def _rename(graph: onnx.GraphProto, names: Mapping[str, str], reserved: set[str], taken: set[str]) -> None:
    own = defined_names(graph)
    fresh = {name: unique_name(name, taken) for name in sorted(own & reserved) if name not in names}
    scope = {**names, **fresh}
    for tensor in graph.initializer:
        tensor.name = scope.get(tensor.name, tensor.name)
    for sparse in graph.sparse_initializer:
        sparse.values.name = scope.get(sparse.values.name, sparse.values.name)
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = scope.get(value.name, value.name)
    for annotation in graph.quantization_annotation:
        annotation.tensor_name = scope.get(annotation.tensor_name, annotation.tensor_name)
        for entry in annotation.quant_parameter_tensor_names:
            entry.value = scope.get(entry.value, entry.value)
    for node in graph.node:
        for operands in (node.input, node.output):
            for index, name in enumerate(operands):
                if name in scope:
                    operands[index] = scope[name]
        for inner in graphs_in(node):
            hidden = defined_names(inner)
            visible = {old: new for old, new in scope.items() if old not in hidden}
            _rename(inner, visible, reserved, taken)
