"""A hash of a model without its large constants, for the history of filters."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from o2o.formats.onnx_writer import header
from o2o.formats.tensors import LARGE
from o2o.formats.unbound_tensor import UnboundTensor
from o2o.model import Model, quantization_constants


def fingerprint(model: Model) -> str:
    """Hash graphs, signatures, small constants, metadata, associated files and history.

    Large constants count by dtype and shape only. So a model with its weights inside and the same model with
    external weights have one fingerprint.

    Args:
        model: The model.

    Returns:
        `sha256:` and 64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    if model.format == "onnx":
        digest.update(header(model))
        return f"sha256:{digest.hexdigest()}"
    for item in _items(model):
        digest.update(item if isinstance(item, bytes) else item.encode())
        digest.update(b"\0")
    return f"sha256:{digest.hexdigest()}"


def _items(model: Model) -> Iterator[str | bytes]:
    yield f"{model.format} {_plain(model.fields)}"
    graphs = {id(graph): str(index) for index, graph in enumerate(model.graphs)}
    for graph in model.graphs:
        yield f"graph {graph.name} {_plain(graph.meta.get('fields'))}"
        for value in _values(graph):
            yield from _value(value)
        for node in graph:
            yield _node(node, graphs)
        yield "outputs " + " ".join(value.name or "" for value in graph.outputs)
    for signature in model.signatures:
        yield f"signature {signature.name} {graphs[id(signature.graph)]}"
        for name, value in (*signature.inputs.items(), *signature.outputs.items()):
            yield f"{name}={value.name} {value.meta.get('role')}"
    for name, data in model.metadata:
        yield name
        yield data
    for file in model.associated_files:
        yield file.info.filename
        yield file.data
    yield repr(model.history)


def _values(graph: ir.Graph) -> Iterable[ir.Value]:
    """All values of `graph`, each once."""
    values = [*graph.inputs, *graph.initializers.values(), *graph.meta.get("loose", ())]
    for node in graph:
        values += [*node.inputs, *node.outputs, *node.meta.get("intermediates", ())]
    return dict.fromkeys(value for value in values if value is not None)


def _value(value: ir.Value) -> Iterator[str | bytes]:
    shape = () if value.shape is None else value.shape.dims
    yield f"{value.name} {value.dtype} {shape} {_plain(value.meta.get('fields'))}"
    for field, other in quantization_constants(value).items():
        yield f"{field} {other.name}"
    tensor = value.const_value
    if tensor is not None:
        in_file = not isinstance(tensor, UnboundTensor)
        yield tensor.tobytes() if in_file and tensor.nbytes < LARGE else f"{tensor.dtype} {tensor.nbytes}"


def _node(node: ir.Node, graphs: dict[int, str]) -> str:
    operands = [node.inputs, node.outputs, node.meta.get("intermediates", ())]
    names = ["-" if value is None else value.name or "" for values in operands for value in values]
    options = [f"{name}={_plain(attribute.value, graphs)}" for name, attribute in node.attributes.items()]
    fields = _plain(node.meta.get("fields"))
    counts = [len(values) for values in operands]
    return f"{node.domain} {node.op_type} {node.version} {counts} {' '.join(names)} ; {options} {fields}"


def _plain(item: Any, graphs: dict[int, str] | None = None) -> str:
    """Text that is equal for equal items. The `repr` of generated tables and of arrays is not."""
    if isinstance(item, np.ndarray):
        return f"{item.dtype} {item.shape} {hashlib.sha256(item.tobytes()).hexdigest()}"
    if isinstance(item, dict):
        return "{" + ",".join(f"{key}:{_plain(value)}" for key, value in item.items()) + "}"
    if isinstance(item, ir.Graph):
        return (graphs or {}).get(id(item), "graph")
    if isinstance(item, list | tuple):
        return "[" + ",".join(_plain(value, graphs) for value in item) + "]"
    if hasattr(item, "__dict__"):
        return f"{type(item).__name__}{_plain(vars(item))}"
    return repr(item)
