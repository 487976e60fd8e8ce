"""A model in memory: `onnx_ir` graphs, signatures that name their inputs and outputs, and metadata.

A Circle or TFLite subgraph is an `ir.Graph`. The `op_type` of a node is its builtin name (`FULLY_CONNECTED`)
in the domain `circle`, or its custom code in `circle.custom`. Constants are initializers. Data that the IR
cannot represent is stored in the `meta` of its owner, so that reading and writing loses nothing:

    value.meta["fields"]   fields of the Tensor table beyond name, shape, type and data (quantization, ...)
    value.meta["role"]     its role in a language model (`o2o.contract.Role`)
    value.meta["quantization_constants"]  see `quantization_constants`
    node.meta["fields"]    fields of the Operator table (customOptions, intermediates, ...)
    node.meta["options"]   the name of the operator's options table, or None if it has none
    value.meta["input_description"], ["output_description"]  see `o2o.formats.tensor_descriptions`
    graph.meta["fields"]   fields of the SubGraph table; graph.meta["loose"]: values without any operator

An ONNX model is what `onnx_ir` makes of it. Nodes have ONNX domains. Branches are graphs in attributes,
and may use outer values. Dimensions may be symbolic. Nodes may call functions. In a file, several graphs are
branches of one (`o2o.formats.onnx_branches`).
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import onnx_ir as ir

from o2o.errors import ModelError

DOMAIN = "circle"
CUSTOM_DOMAIN = "circle.custom"

Format = Literal["circle", "tflite", "onnx"]


@dataclass
class Signature:
    """A named entry point of a model.

    Attributes:
        name: Its name.
        graph: Its graph.
        inputs: The graph's inputs by their public names, in calling order.
        outputs: The graph's outputs by their public names, in calling order.
    """

    name: str
    graph: ir.Graph
    inputs: dict[str, ir.Value]
    outputs: dict[str, ir.Value]

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Replace a value among the inputs and outputs.

        Args:
            old: The value to replace.
            new: The value that takes its names.
        """
        for values in (self.inputs, self.outputs):
            for name, value in values.items():
                if value is old:
                    values[name] = new


class AssociatedFile(NamedTuple):
    """A file in the archive behind a model (`o2o.formats.associated_files`): name, dates, bytes."""

    info: zipfile.ZipInfo
    data: bytes


@dataclass
class Model:
    """The contents of one model file.

    Attributes:
        format: The format of the file.
        graphs: Its graphs; the first is the main graph. In ONNX each is an entry point.
        signatures: Its signatures.
        metadata: Name and contents of each metadata entry that this project does not interpret.
        history: The history of filters (`o2o.history`).
        fields: Other fields of the schema's Model table, or of ONNX's ModelProto.
        unused: Tensors of a checkpoint without a reference (`o2o.formats.unbound_tensor`), by file.
        associated_files: Files in an archive behind the model, such as labels.
        functions: The functions of an ONNX model, by domain, name and overload.
    """

    format: Format
    graphs: list[ir.Graph]
    signatures: list[Signature] = field(default_factory=list)
    metadata: list[tuple[str, bytes]] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)
    unused: dict[str, dict[str, str]] = field(default_factory=dict)
    associated_files: list[AssociatedFile] = field(default_factory=list)
    functions: dict[ir.OperatorIdentifier, ir.Function] = field(default_factory=dict)

    def all_graphs(self) -> Iterator[ir.Graph]:
        """Yield every graph: those of `graphs`, of functions, and the graphs in attributes of their nodes.

        Yields:
            Each graph once, an outer graph before the graphs in it.
        """
        pending = [*self.graphs, *(function.graph for function in self.functions.values())]
        seen: set[int] = set()
        while pending:
            graph = pending.pop(0)
            if id(graph) not in seen:
                seen.add(id(graph))
                yield graph
                pending += [inner for node in graph for inner in inner_graphs(node)]

    def signatures_of(self, graph: ir.Graph) -> Iterator[Signature]:
        """Find the signatures of a graph.

        Args:
            graph: A graph of the model.

        Returns:
            Its signatures: none, one or several.
        """
        return (signature for signature in self.signatures if signature.graph is graph)

    def label(self, graph: ir.Graph) -> str:
        """Return the name of a graph for messages.

        Args:
            graph: A graph of the model.

        Returns:
            The name of its first signature, else its own name, else its number.
        """
        for signature in self.signatures_of(graph):
            return signature.name
        for (domain, name, _), function in self.functions.items():
            if function.graph is graph:
                return f"function {f'{domain}.' if domain else ''}{name}"
        return graph.name or (
            f"subgraph {self.graphs.index(graph)}" if graph in self.graphs else "inner graph"
        )

    def locate(self, graph: ir.Graph, node: ir.Node) -> str:
        """Return a node's description for a message.

        Args:
            graph: The graph of the node.
            node: The node.

        Returns:
            Its operator, its first output, its graph, and the PyTorch module that it was exported from, if
            known.
        """
        name = next((value.name for value in node.outputs if value.name), "?")
        module = _module(name)
        return f"{node.op_type} ({name} in {self.label(graph)}{f', module {module}' if module else ''})"

    def add_default_signature(self, name: str) -> None:
        """Add a signature for the main graph if it has none.

        Args:
            name: The name of the signature.
        """
        graph = self.graphs[0]
        if not any(self.signatures_of(graph)):
            inputs, outputs = ({v.name or "": v for v in values} for values in (graph.inputs, graph.outputs))
            self.signatures.append(Signature(name, graph, inputs, outputs))

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Replace a value among the inputs and outputs of graphs and signatures.

        Args:
            old: The value to replace.
            new: The value that takes its place.
        """
        for graph in self.graphs:
            for values in (graph.inputs, graph.outputs):
                for index, value in enumerate(values):
                    if value is old:
                        values[index] = new
                        keep_description(old, new)
        for signature in self.signatures:
            signature.replace(old, new)


def keep_description(old: ir.Value, new: ir.Value) -> None:
    """Let an input or output that replaces another have its description (`o2o.formats.tensor_descriptions`).

    Args:
        old: The value that was there.
        new: The value that takes its place.
    """
    for key in ("input_description", "output_description"):
        if (description := old.meta.get(key)) is not None:
            new.meta.setdefault(key, description)


def shape_of(value: ir.Value) -> tuple[int, ...]:
    """Return the shape of a value.

    Args:
        value: A value with a static shape.

    Returns:
        Its dimensions; empty if its shape is unknown.

    Raises:
        ModelError: It has symbolic dimensions.
    """
    if value.shape is None:
        return ()
    if not value.shape.is_static():
        dims = ",".join(map(str, dims_of(value) or ()))
        raise ModelError(f"{value.name} has the shape [{dims}]: fix.shape.py gives its dimensions numbers")
    return tuple(value.shape.numpy())


def dims_of(value: ir.Value) -> tuple[int | str, ...] | None:
    """Return the dimensions of a value.

    Args:
        value: Any value.

    Returns:
        Numbers, and names of symbolic dimensions: `?` for one without a name. None if its rank is unknown.
    """
    if value.shape is None:
        return None
    return tuple(
        dim if isinstance(dim, int) else str(dim.value) if dim.value is not None else "?"
        for dim in value.shape
    )


def dtype_name(value: ir.Value) -> str:
    """Return the name of a value's dtype.

    Args:
        value: Any value.

    Returns:
        A name such as `float32`, `int4` or `string`; `other` for a type without an equivalent in the IR.
    """
    if value.dtype is None or value.dtype == ir.DataType.UNDEFINED:
        return "other"
    return "string" if value.dtype == ir.DataType.STRING else str(value.dtype.numpy())


def quantization_constants(value: ir.Value) -> Mapping[str, ir.Value]:
    """Return the constants that hold the parameters of a block-wise quantized value.

    Args:
        value: Any value.

    Returns:
        The constants by their field of the schema's `BlockwiseQuantization`: `scales`, `zeroPoints`; empty
        for other values.
    """
    constants: Mapping[str, ir.Value] = value.meta.get("quantization_constants", {})
    return constants


def unique_name(stem: str, taken: set[str]) -> str:
    """Return the first of `stem`, `stem_1`, `stem_2`, ... that is not taken, and take it.

    Args:
        stem: The wanted name.
        taken: The names in use; gets the new one.

    Returns:
        The name.
    """
    name, count = stem, 0
    while name in taken:
        count += 1
        name = f"{stem}_{count}"
    taken.add(name)
    return name


def is_dynamic(value: ir.Value) -> bool:
    """Return whether a runtime may resize a value.

    Args:
        value: Any value.

    Returns:
        True if the schema's `shapeSignature` has a dimension of -1: the static shape is then only an example.
        True also if a dimension is symbolic.
    """
    if value.shape is not None and not value.shape.is_static():
        return True
    signature = value.meta.get("fields", {}).get("shapeSignature")
    return signature is not None and any(dim < 0 for dim in signature)


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """Return an attribute of a node.

    Args:
        node: The node.
        name: The name of the attribute.
        default: The result if the node has no such attribute.

    Returns:
        The value of the attribute.
    """
    option = node.attributes.get(name)
    return default if option is None else option.value


def inner_graphs(node: ir.Node) -> Iterator[ir.Graph]:
    """Yield the graphs that `node` runs: branches, loop bodies, decompositions.

    Args:
        node: Any node.

    Yields:
        Each graph, in the order of the attributes.
    """
    for item in node.attributes.values():
        if item.type == ir.AttributeType.GRAPH:
            yield item.as_graph()
        elif item.type == ir.AttributeType.GRAPHS:
            yield from item.as_graphs()


def captured_values(node: ir.Node) -> Iterator[ir.Value]:
    """Yield the outer values that the graphs of a node use without taking them as inputs (ONNX).

    Args:
        node: Any node.

    Yields:
        Values of the graphs around the node. A value may occur several times.
    """
    if node.domain in (DOMAIN, CUSTOM_DOMAIN):
        return
    for graph in inner_graphs(node):
        own = {id(value) for value in (*graph.inputs, *graph.initializers.values())}
        own |= {id(value) for inner in graph for value in inner.outputs}
        for inner in graph:
            for value in operands(inner):
                if id(value) not in own:
                    yield value


def operands(node: ir.Node) -> Iterator[ir.Value]:
    """Yield the values that a node needs: its inputs, and those that its graphs capture.

    Args:
        node: Any node.

    Yields:
        Values. A value may occur several times.
    """
    yield from (value for value in node.inputs if value is not None)
    yield from captured_values(node)


def users(value: ir.Value, graph: ir.Graph) -> list[ir.Node]:
    """Return the nodes of a graph that need a value, also for graphs that they run.

    Args:
        value: A value of `graph`.
        graph: The graph.

    Returns:
        Nodes of `graph`, each once.
    """
    nodes = [use.node for use in value.uses()]
    if all(node.graph is graph for node in nodes):
        return list(dict.fromkeys(nodes))
    outer = owners(graph)
    return list(dict.fromkeys(outer[id(node.graph)] if node.graph is not graph else node for node in nodes))


def owners(graph: ir.Graph) -> dict[int, ir.Node]:
    """Return the nodes of a graph that run other graphs and may capture values (ONNX).

    Args:
        graph: The graph.

    Returns:
        A node of `graph` by the id of each graph in it, at any depth.
    """
    return {id(inner): node for node in graph for inner in nested_graphs(node)}


def remove_nodes(graph: ir.Graph, nodes: Iterable[ir.Node]) -> None:
    """Remove nodes of a graph. The values that graphs in them captured lose these uses.

    Args:
        graph: Changed in place.
        nodes: Some of its nodes. Their results have no other users.
    """
    nodes = list(nodes)
    for node in nodes:
        for inner in nested_graphs(node):
            for user in inner:
                for index in range(len(user.inputs)):
                    user.replace_input_with(index, None)
    graph.remove(nodes, safe=True)


def nested_graphs(node: ir.Node) -> Iterator[ir.Graph]:
    """Yield the graphs in the attributes of an ONNX node, at any depth.

    Args:
        node: Any node. Those of Circle run graphs of the model, which are not in them.

    Yields:
        Each graph.
    """
    for graph in inner_graphs(node) if node.domain not in (DOMAIN, CUSTOM_DOMAIN) else ():
        yield graph
        for inner in graph:
            yield from nested_graphs(inner)


def _module(name: str) -> str:
    """The PyTorch module in the name of an exported tensor, as `MODULE/OPERATOR`; "" if there is none."""
    module, slash, _ = name.partition("/")
    return module if slash or "." in module else ""
