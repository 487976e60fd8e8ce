"""Reader of ONNX files: bytes -> `Model`, over `onnx_ir`. Large constants stay in their files.

External data is named by the model and opened when its numbers are needed. Its place is relative to the
folder of the model. For a model on stdin that is the current folder.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from o2o import contract, history
from o2o.errors import ModelError
from o2o.formats import onnx_branches, onnx_proto
from o2o.formats.onnx_splitting import split
from o2o.formats.protobuf_wire import MARK, Range, cut
from o2o.formats.schema import Span
from o2o.formats.tensors import LARGE, SourceTensor, is_constant_node
from o2o.model import Model, Signature, inner_graphs
from o2o.streams import ExternalFile, Source

DAMAGE = (ir.serde.SerdeError, ValueError, TypeError, KeyError, AttributeError, NotImplementedError)
"""What `onnx_ir` raises for a message that breaks the rules of ONNX."""
OWN_METADATA = (contract.METADATA_NAME, history.METADATA_NAME)
TRAINING_INFO = "training_info"
PROPERTIES = (
    "ir_version",
    "producer_name",
    "producer_version",
    "domain",
    "model_version",
    "doc_string",
    "device_configurations",
)
"""Properties of a model that are stored in `Model.fields`."""

# A library that warns prints on stderr. What it warns of here is invalid, and `verify.model.py` reports it.
logging.getLogger("onnx_ir").addHandler(logging.NullHandler())


def read(source: Source) -> Model:
    """Read a model without loss: what is written from the result is equivalent.

    Args:
        source: The bytes of an ONNX file. It must outlive the model, which reads constants on demand.

    Returns:
        The model.

    Raises:
        ModelError: The file is truncated, damaged or has no graph.
    """
    try:
        message, ranges = cut(source.header, LARGE)
        proto = onnx.ModelProto.FromString(message)
        return decode(proto, [_Data(source, place) for place in ranges], source.folder)
    except ModelError as error:
        raise ModelError(f"{source.name}: {error}") from error
    except DecodeError as error:
        raise ModelError(f"{source.name}: truncated or damaged ONNX model ({error})") from error
    except (
        ir.serde.SerdeError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        NotImplementedError,
    ) as error:
        raise ModelError(f"{source.name}: damaged ONNX model: {_reason(error)}") from error


def metadata_of(source: Source) -> dict[str, str]:
    """Return the metadata of a file as it is stored.

    Args:
        source: The bytes of an ONNX file that can be read.

    Returns:
        Its `metadata_props`.
    """
    message, _ = cut(source.header, LARGE)
    return {entry.key: entry.value for entry in onnx.ModelProto.FromString(message).metadata_props}


def external_locations(source: Source) -> set[str]:
    """Return where a file has external data.

    Args:
        source: The bytes of an ONNX file.

    Returns:
        The locations, relative to its folder.

    Raises:
        ModelError: The file is truncated or damaged.
    """
    try:
        message, _ = cut(source.header, LARGE)
        proto = onnx.ModelProto.FromString(message)
    except DecodeError as error:
        raise ModelError(f"{source.name}: truncated or damaged ONNX model ({error})") from error
    pending, locations = [proto.graph], set[str]()
    while pending:
        graph = pending.pop()
        attributes = [attribute for node in graph.node for attribute in node.attribute]
        pending += [attribute.g for attribute in attributes if attribute.HasField("g")]
        tensors = (*graph.initializer, *(a.t for a in attributes if a.HasField("t")))
        entries = (entry for tensor in tensors for entry in tensor.external_data)
        locations |= {entry.value for entry in entries if entry.key == "location"}
    return locations - {MARK}


def decode(proto: onnx.ModelProto, tensors: Sequence[Any], folder: Path | None) -> Model:
    """Turn a message into a model.

    Args:
        proto: The message, which becomes the model's own.
        tensors: What references in it stand for, by number: a range of a file, or a tensor.
        folder: The folder of the file; None for the current one, from which locations may lead out.

    Returns:
        The model.

    Raises:
        ModelError: The message has no graph, or a constant does not fit its shape.
    """
    if not proto.HasField("graph"):
        raise ModelError("it holds no graph")
    training = [info.SerializeToString(deterministic=True) for info in proto.training_info]
    table = list(tensors)
    constants = _Constants(table, folder)
    names, protos = _protos(proto)
    models = []
    for one in protos:
        onnx_proto.prepare(one, table)
        models.append(ir.serde.deserialize_model(one))
        constants.attach(models[-1])
    model = from_ir(models[0], [other.graph for other in models[1:]], names)
    if training:
        model.fields[TRAINING_INFO] = training
    return model


def _protos(proto: onnx.ModelProto) -> tuple[list[list[str]], list[onnx.ModelProto]]:
    """A message for each graph, and the names of its signatures; no names for a single graph."""
    record = next((e for e in proto.metadata_props if e.key == onnx_branches.METADATA_NAME), None)
    parts = split(proto.graph, record.value) if record is not None else None
    if record is None or parts is None:
        return [], [proto]
    proto.metadata_props.remove(record)
    proto.ClearField("graph")
    protos = []
    for part in parts:
        protos.append(onnx.ModelProto(graph=part.graph))
        protos[-1].MergeFrom(proto)
    return [part.names for part in parts], protos


def from_ir(
    graph_model: ir.Model, others: Sequence[ir.Graph] = (), names: Sequence[Sequence[str]] = ()
) -> Model:
    """Take a model of `onnx_ir`: its metadata gives the contract and the history.

    Args:
        graph_model: The model. Its graph and functions become those of the result.
        others: Further graphs of the model.
        names: The signatures of each graph. Without these, the contract names those of the only one.

    Returns:
        The model.

    Raises:
        ModelError: Its contract or history is damaged.
    """
    properties = {name: getattr(graph_model, name) for name in PROPERTIES}
    metadata = dict(graph_model.metadata_props)
    model = Model(
        "onnx",
        [graph_model.graph, *others],
        metadata=[(key, text.encode()) for key, text in metadata.items() if key not in OWN_METADATA],
        fields={name: item for name, item in properties.items() if item},
        functions=dict(graph_model.functions),
    )
    text = metadata.get(contract.METADATA_NAME)
    if not names and text is not None:
        names = [list(contract.loads(text)["signatures"])]
    for graph, of_graph in zip(model.graphs, names, strict=False):
        for name in of_graph:
            inputs, outputs = ({v.name or "": v for v in values} for values in (graph.inputs, graph.outputs))
            model.signatures.append(Signature(name, graph, inputs, outputs))
    if text is not None:
        contract.attach(model, text.encode())
    if (text := metadata.get(history.METADATA_NAME)) is not None:
        model.history = history.loads(text.encode())
    return model


class _Data:
    """Data of a tensor in a file."""

    def __init__(self, source: Source, place: Range) -> None:
        self.source, self.place = source, place

    def tensor(self, like: ir.ExternalTensor) -> SourceTensor:
        return _source_tensor(like, self.source, Span(*self.place))


class _Constants:
    """Replaces the external tensors of `onnx_ir` by tensors that are read from their sources."""

    def __init__(self, table: Sequence[Any], folder: Path | None) -> None:
        self.table, self.folder = table, folder
        self.files: dict[str, ExternalFile] = {}

    def attach(self, model: ir.Model) -> None:
        pending = [model.graph, *(function.graph for function in model.functions.values())]
        while pending:
            graph = pending.pop()
            for value in graph.initializers.values():
                assert value.const_value is not None
                value.const_value = self._tensor(value.const_value)
            for node in graph:
                self._attach_to_node(node)
                if is_constant_node(node):
                    node.outputs[0].const_value = _constant_of(node)
                pending += inner_graphs(node)

    def _attach_to_node(self, node: ir.Node) -> None:
        for name, attribute in list(node.attributes.items()):
            if attribute.is_ref():
                continue
            if attribute.type == ir.AttributeType.TENSOR:
                tensor = self._tensor(attribute.value)
                if tensor is not attribute.value:
                    node.attributes[name] = ir.AttrTensor(name, tensor, doc_string=attribute.doc_string)
            elif attribute.type == ir.AttributeType.TENSORS:
                tensors = [self._tensor(tensor) for tensor in attribute.value]
                node.attributes[name] = ir.AttrTensors(name, tensors, doc_string=attribute.doc_string)

    def _tensor(self, tensor: Any) -> Any:
        if isinstance(tensor, ir.serde.TensorProtoTensor):
            tensor.raw.ClearField("metadata_props")  # `onnx_ir` would write them twice
        if not isinstance(tensor, ir.ExternalTensor):
            return tensor
        if str(tensor.location) == onnx_proto.MARK:
            entry = self.table[tensor.offset or 0]
            return entry.tensor(tensor) if isinstance(entry, _Data) else _renamed(entry, tensor)
        start, size = tensor.offset or 0, tensor.length
        span = Span(start, tensor.nbytes if size is None else size, outside=True)
        return _source_tensor(tensor, self._file(str(tensor.location), tensor.name), span)

    def _file(self, location: str, tensor: str) -> ExternalFile:
        if location not in self.files:
            place = PurePosixPath(location)
            if self.folder is not None and (place.is_absolute() or ".." in place.parts):
                raise ModelError(
                    f"the data of {tensor} is in {location!r}, outside the model's folder: move it there, or "
                    "pass the model on stdin"
                )
            self.files[location] = ExternalFile((self.folder or Path()) / PurePath(location))
        return self.files[location]


def _constant_of(node: ir.Node) -> Any:
    """The tensor of a `Constant`; None if an attribute of a function, or a sparse tensor, gives it."""
    name, attribute = next(iter(node.attributes.items()), ("", None))
    if attribute is None or attribute.is_ref():
        return None
    match name:
        case "value":
            return attribute.value
        case "value_int" | "value_ints":
            return ir.Tensor(np.array(attribute.value, np.int64))
        case "value_float" | "value_floats":
            return ir.Tensor(np.array(attribute.value, np.float32))
    return None


def _renamed(tensor: Any, like: ir.ExternalTensor) -> Any:
    tensor.name = like.name
    return tensor


def _source_tensor(like: ir.ExternalTensor, source: Source, span: Span) -> SourceTensor:
    shape = tuple(like.shape.numpy())
    tensor = SourceTensor(source, span, like.dtype, shape, like.name)
    if tensor.dtype != like.dtype or tuple(tensor.shape.numpy()) != shape:
        raise ModelError(
            f"damaged: the constant {like.name} has {span.size:,} bytes, and {like.dtype} {list(shape)} "
            f"needs {like.nbytes:,}"
        )
    tensor.doc_string = like.doc_string
    tensor.metadata_props.update(like.metadata_props)
    return tensor


def _reason(error: Exception) -> str:
    """The innermost reason, in one line: `onnx_ir` wraps errors and prints whole messages."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return " ".join(str(error).split())[:200]
