"""A model in memory: several `onnx_ir` graphs, the signatures that name their ends, and what travels along.

A Circle or TFLite subgraph is an `ir.Graph`. Its nodes live in the domain `circle` under their builtin
name (`FULLY_CONNECTED`), or in `circle.custom` under their custom code. Constants are initializers. What
the IR has no slot for stays with its owner under `meta`, so that nothing is lost between reading and
writing:

    value.meta["fields"]   fields of the Tensor table beyond name, shape, type and data (quantization, ...)
    value.meta["role"]     what the value is to a language model (`o2o.contract.Role`)
    value.meta["quantization_constants"]  see `quantization_constants`
    node.meta["fields"]    fields of the Operator table (customOptions, intermediates, ...)
    node.meta["options"]   the name of the operator's options table, or None when it has none
    graph.meta["fields"]   fields of the SubGraph table; graph.meta["loose"]: other values no operator touches
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import onnx_ir as ir

DOMAIN = "circle"
CUSTOM_DOMAIN = "circle.custom"

Format = Literal["circle", "tflite"]


@dataclass
class Signature:
    """A named entry point: its graph, and the public name of each input and output in calling order."""

    name: str
    graph: ir.Graph
    inputs: dict[str, ir.Value]
    outputs: dict[str, ir.Value]

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Let every name that stands for `old` stand for `new`."""
        for ends in (self.inputs, self.outputs):
            for name, value in ends.items():
                if value is old:
                    ends[name] = new


@dataclass
class Model:
    """Graphs (the first is the main one), signatures and metadata of one file.

    `fields` are those of the Model table that nothing else here holds. `unused` are the tensors of a
    checkpoint, by file, that a model with references into it is known not to need.
    """

    format: Format
    graphs: list[ir.Graph]
    signatures: list[Signature] = field(default_factory=list)
    metadata: list[tuple[str, bytes]] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)
    unused: dict[str, dict[str, str]] = field(default_factory=dict)

    def signatures_of(self, graph: ir.Graph) -> Iterator[Signature]:
        """The signatures that enter `graph`; several may."""
        return (signature for signature in self.signatures if signature.graph is graph)

    def label(self, graph: ir.Graph) -> str:
        """How to call `graph` in a message: its signature's name, else its own, else its number."""
        for signature in self.signatures_of(graph):
            return signature.name
        return graph.name or f"subgraph {self.graphs.index(graph)}"

    def sign(self, name: str) -> None:
        """Give the main graph a signature if it has none."""
        graph = self.graphs[0]
        if not any(self.signatures_of(graph)):
            inputs, outputs = ({v.name or "": v for v in ends} for ends in (graph.inputs, graph.outputs))
            self.signatures.append(Signature(name, graph, inputs, outputs))

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Let `new` stand where `old` does among the inputs and outputs of graphs and signatures."""
        for graph in self.graphs:
            for ends in (graph.inputs, graph.outputs):
                for index, value in enumerate(ends):
                    if value is old:
                        ends[index] = new
        for signature in self.signatures:
            signature.replace(old, new)


def shape_of(value: ir.Value) -> tuple[int, ...]:
    """The static shape of `value`."""
    return tuple(value.shape.numpy()) if value.shape is not None else ()


def dtype_name(value: ir.Value) -> str:
    """`float32`, `int4`, `string`; `other` for a type that the IR lacks."""
    if value.dtype is None:
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


def is_dynamic(value: ir.Value) -> bool:
    """Whether the shape of `value` is only an example, which a runtime may resize."""
    signature = value.meta.get("fields", {}).get("shapeSignature")
    return signature is not None and any(dim < 0 for dim in signature)


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    found = node.attributes.get(name)
    return default if found is None else found.value
