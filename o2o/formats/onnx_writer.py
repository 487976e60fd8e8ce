"""Writer of ONNX files: `Model` -> bytes. Large constants are streamed, one at a time.

Constants stay where the model has them. Data inside the file stays inside. External data stays in its file,
whose place is written relative to the current folder: a filter writes to stdout. With `-o FILE` external data
is copied to `FILE.data`, each tensor aligned to a page so that it can be mapped. So FILE and FILE.data can be
moved together. A model that is too large for one message gets external data too.

`onnx_ir.save(external_data=...)` is not used. It replaces the data file before it writes the graph. A failure
between the two leaves a graph with the weights of another model. Nor can it write to a pipe. Here both files
are laid out, and `o2o.formats.save` writes them. They appear together, when both are complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from o2o import contract, history
from o2o.errors import ModelError
from o2o.formats import onnx_branches, onnx_proto
from o2o.formats.onnx_branches import Part, Selector
from o2o.formats.onnx_composition import compose
from o2o.formats.onnx_proto import SparseTensor
from o2o.formats.onnx_reader import PROPERTIES, TRAINING_INFO, decode, from_ir
from o2o.formats.protobuf_wire import MARK, paste
from o2o.formats.schema import Span
from o2o.formats.tensors import LARGE, SourceTensor, constants_of, storage_key
from o2o.formats.writer import Plan, Segment
from o2o.model import Model
from o2o.streams import ExternalFile, Source, open_file, open_output

LARGE_EXTERNAL = 1 << 14
"""Bytes from which a tensor becomes external data."""
PAGE = 4096
LIMIT = (1 << 31) - 1
"""Bytes of a protobuf message."""
EXTERNAL = "external_data"
"""The field of a model whose large constants become external data in any file."""

_Path = str | os.PathLike[str] | None


@dataclass(frozen=True)
class _Placed:
    """A tensor in a file of external data."""

    tensor: ir.TensorProtocol
    location: str
    offset: int

    @property
    def entries(self) -> dict[str, str]:
        return {
            "location": self.location,
            "offset": str(self.offset),
            "length": str(self.tensor.nbytes),
        }


def new_model(graph_model: ir.Model) -> Model:
    """Take a model of `onnx_ir` that was built here. Its large constants become external data of any file.

    Args:
        graph_model: The model. Its graph and functions become those of the result.

    Returns:
        The model.

    Raises:
        ModelError: Its contract or history is damaged.
    """
    model = from_ir(graph_model)
    model.fields[EXTERNAL] = True
    return model


def plan(model: Model) -> Plan:
    """Lay out the file of a model. External data stays in its files.

    Args:
        model: The model.

    Returns:
        The layout.

    Raises:
        ModelError: The model is larger than a protobuf message can be.
    """
    planned = _plan(*encode(model, _in_place))
    if planned.size > LIMIT:
        raise ModelError(
            f"the model takes {planned.size:,} bytes, and one ONNX file holds at most {LIMIT:,}: -o FILE "
            "writes the weights to a second file, FILE.data"
        )
    return planned


def plan_files(
    model: Model, path: str | os.PathLike[str] | None
) -> dict[str | os.PathLike[str] | None, Plan]:
    """Lay out the files of a model. External data is copied to `path`.data.

    A pipe or device gets the model alone.

    Args:
        model: The model.
        path: The file. A symbolic link is followed. None for stdout.

    Returns:
        The layout of each file by its path, the graph's first.

    Raises:
        ModelError: The graph is larger than a protobuf message can be.
    """
    target = Path(path).resolve() if path is not None else None
    if target is None or (target.exists() and not target.is_file()):
        return {path: plan(model)}
    data = target.with_name(f"{target.name}.data")
    for everything in sorted({bool(model.fields.get(EXTERNAL)), True}):
        layout = _Layout(data.name, everything)
        planned = _plan(*encode(model, layout.place))
        if planned.size <= LIMIT:
            files: dict[_Path, Plan] = {path: planned}
            return files | ({data: Plan(b"", layout.segments, layout.size)} if layout.segments else {})
    raise ModelError(
        f"the graph and its small constants take {planned.size:,} bytes, and one ONNX file holds at most "
        f"{LIMIT:,}"
    )


def write_without_data(model: Model, path: Path) -> None:
    """Write a model whose large constants are external data without contents: a file of the right size.

    Args:
        model: The model. Its large constants are not read.
        path: The file. The data is `path`.data, which takes no room on the disk.

    Raises:
        ModelError: The model cannot be written.
        OSError: A file cannot be written.
    """
    layout = _Layout(f"{path.name}.data", everything=True)
    with open_output(path) as sink:
        _plan(*encode(model, layout.place)).write(sink)
    with open(path.with_name(layout.location), "wb") as data:
        data.truncate(layout.size)


class _Layout:
    """The file of external data while it is laid out."""

    def __init__(self, location: str, everything: bool) -> None:
        """Begin with an empty file.

        Args:
            location: Its name in the model.
            everything: Place all large tensors, not only those that are external already.
        """
        self.location, self.everything = location, everything
        self.segments: list[Segment] = []
        self.size = 0
        self._offsets: dict[Any, int] = {}

    def place(self, tensor: ir.TensorProtocol) -> _Placed | None:
        """Return the place of a tensor; None if it is written into the graph's file."""
        is_large = self.everything and tensor.nbytes >= LARGE_EXTERNAL
        if not (is_large or is_external(tensor)) or tensor.dtype == ir.DataType.STRING:
            return None
        key = storage_key(tensor)
        if key not in self._offsets:
            offset = -(-self.size // PAGE) * PAGE
            self._offsets[key] = offset
            self.segments.append(Segment(offset, tensor))
            self.size = offset + tensor.nbytes
        return _Placed(tensor, self.location, self._offsets[key])


def inline(model: Model) -> None:
    """Let external data be written inside the file of the model.

    Args:
        model: Changed in place. Its data is not read.

    Raises:
        OSError: A file of data does not exist.
    """
    sources: dict[int, Source] = {}
    for graph in model.all_graphs():
        for value in constants_of(graph):
            tensor = value.const_value
            if isinstance(tensor, SourceTensor) and isinstance(tensor.source, ExternalFile):
                source = sources.setdefault(id(tensor.source), open_file(tensor.source.path))
                span = Span(tensor.span.start, tensor.span.size)
                value.const_value = SourceTensor(
                    source, span, tensor.dtype, tuple(tensor.shape.numpy()), tensor.name or ""
                )


def is_external(tensor: object) -> bool:
    """Return whether a tensor is external data of the model that was read.

    Args:
        tensor: Any tensor.

    Returns:
        True if its bytes are in a file that the model names.
    """
    return isinstance(tensor, SourceTensor) and isinstance(tensor.source, ExternalFile)


def _in_place(tensor: ir.TensorProtocol) -> _Placed | None:
    """External data stays in its file."""
    if not is_external(tensor):
        return None
    assert isinstance(tensor, SourceTensor)
    assert isinstance(tensor.source, ExternalFile)
    location = Path(os.path.relpath(tensor.source.path)).as_posix()
    return _Placed(tensor, location, tensor.span.start)


def handed_over(model: Model) -> Model:
    """Return what reading the file of a model would give, without the file.

    Args:
        model: The model, which must not be used afterwards.

    Returns:
        The model with the same large constants.

    Raises:
        ModelError: The model cannot be written.
    """
    message, tensors = encode(model, lambda tensor: None)
    return decode(onnx.ModelProto.FromString(message), tensors, None)


def decoded_header(model: Model, change: Callable[[onnx.ModelProto], onnx.ModelProto]) -> Model:
    """Return the model of messages that a function of `onnx` has changed.

    Args:
        model: The model. It is not changed.
        change: Takes the message of a graph, without large constants, and returns another one.

    Returns:
        A model of its own, with the same graphs and large constants.

    Raises:
        ModelError: The model cannot be written.
    """
    changed: Model | None = None
    for graph in model.graphs:
        alone = replace(model, graphs=[graph], signatures=list(model.signatures_of(graph)))
        message, tensors = encode(alone, lambda tensor: None)
        one = decode(change(onnx.ModelProto.FromString(message)), tensors, None)
        if changed is None:
            changed = one
        else:
            changed.graphs += one.graphs
    assert changed is not None
    return changed


def selector_of(model: Model) -> Selector:
    """Return what selects the graph that runs.

    Args:
        model: A model of several graphs.

    Returns:
        The selector.

    Raises:
        ModelError: The graphs cannot be in one file.
    """
    with _references(model) as tensors:
        proto = _message(model, tensors)
    (record,) = (e.value for e in proto.metadata_props if e.key == onnx_branches.METADATA_NAME)
    return onnx_branches.selector_in(record)


def header(model: Model) -> bytes:
    """Return the message of a model without its large constants: what its fingerprint covers.

    Args:
        model: The model.

    Returns:
        The serialized message. A large constant is its dtype and shape.

    Raises:
        ModelError: The model cannot be written.
    """
    message, _ = encode(model, lambda tensor: _Placed(tensor, "", 0))
    return message


def encode(
    model: Model, place: Callable[[ir.TensorProtocol], _Placed | None]
) -> tuple[bytes, list[ir.TensorProtocol]]:
    """Turn a model into a message with references in place of large constants.

    Args:
        model: The model.
        place: Returns the place of a constant's data in another file; None for data in the message.

    Returns:
        The serialized message, and the constants by the numbers of their references.

    Raises:
        ModelError: The model cannot be written.
    """
    with _references(model) as tensors:
        placed = [place(tensor) for tensor in tensors]
        proto = _message(model, tensors)

    def entries(number: int) -> dict[str, str]:
        at = placed[number]
        return at.entries if at is not None else {}

    onnx_proto.make_external(proto, entries)
    for info in model.fields.get(TRAINING_INFO, ()):
        proto.training_info.add().ParseFromString(info)
    return proto.SerializeToString(deterministic=True), tensors


def _message(model: Model, tensors: Sequence[ir.TensorProtocol]) -> onnx.ModelProto:
    """The message of a model with references: of several graphs, they are branches of one."""
    protos = []
    for graph in model.graphs:
        graph_model = _to_ir(model, graph)
        try:
            protos.append(ir.serde.serialize_model(graph_model))
        except (ir.serde.SerdeError, TypeError, ValueError) as error:
            raise ModelError(f"the graph cannot be written as ONNX: {_reason(error)}") from error
        onnx_proto.restore(protos[-1], graph_model, tensors)
    proto = protos[0]
    if len(protos) > 1:
        names = [[signature.name for signature in model.signatures_of(graph)] for graph in model.graphs]
        parts = [Part(of, each.graph) for of, each in zip(names, protos, strict=True)]
        graph, record = compose(parts, partial(_data_key, tensors))
        proto.graph.CopyFrom(graph)
        proto.metadata_props.add(key=onnx_branches.METADATA_NAME, value=record)
    return proto


def _data_key(tensors: Sequence[ir.TensorProtocol], proto: onnx.TensorProto) -> Hashable:
    """What identifies the data of a large constant; None for a small one."""
    number = onnx_proto.referenced(proto) if proto.external_data else None
    if number is not None:
        return storage_key(tensors[number])
    if proto.ByteSize() < LARGE:
        return None
    data = onnx.TensorProto.FromString(proto.SerializeToString())  # numbers in other fields than `raw_data`
    data.ClearField("name")
    return hashlib.sha256(data.SerializeToString(deterministic=True)).digest()


def _to_ir(model: Model, graph: ir.Graph) -> ir.Model:
    metadata = {key: data.decode(errors="replace") for key, data in model.metadata}
    for name, contents in (
        (contract.METADATA_NAME, contract.dumps(model)),
        (history.METADATA_NAME, history.dumps(model.history)),
    ):
        if contents is not None:
            metadata[name] = contents.decode()
    properties = {name: model.fields[name] for name in PROPERTIES if name in model.fields}
    properties.setdefault("ir_version", onnx.IR_VERSION)
    functions = list(model.functions.values())
    return ir.Model(graph, **properties, functions=functions, metadata_props=metadata)


@contextlib.contextmanager
def _references(model: Model) -> Iterator[list[ir.TensorProtocol]]:
    """Replace large constants by references, for as long as the context lasts. Yield them by number."""
    tensors: list[ir.TensorProtocol] = []
    undo: list[Callable[[], None]] = []

    def reference(tensor: ir.TensorProtocol, name: str) -> ir.ExternalTensor:
        tensors.append(tensor)
        return ir.ExternalTensor(
            MARK,
            len(tensors) - 1,
            None,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=name,
            doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props),
        )

    try:
        for graph in model.all_graphs():
            for value in graph.initializers.values():
                if (tensor := value.const_value) is not None and _is_referenced(tensor):
                    undo.append(partial(setattr, value, "const_value", tensor))
                    value.const_value = reference(tensor, value.name or "")
            for node in graph:
                for name, attribute in list(node.attributes.items()):
                    if attribute.type not in _TENSORS or attribute.is_ref():
                        continue
                    is_list = attribute.type == ir.AttributeType.TENSORS
                    each = list(attribute.value) if is_list else [attribute.value]
                    if not any(map(_is_referenced, each)):
                        continue
                    undo.append(partial(node.attributes.__setitem__, name, attribute))
                    each = [reference(t, t.name or "") if _is_referenced(t) else t for t in each]
                    node.attributes[name] = (
                        ir.AttrTensors(name, each, doc_string=attribute.doc_string)
                        if is_list
                        else ir.AttrTensor(name, each[0], doc_string=attribute.doc_string)
                    )
        yield tensors
    finally:
        for step in undo:
            step()


_TENSORS = (ir.AttributeType.TENSOR, ir.AttributeType.TENSORS)


def _is_referenced(tensor: ir.TensorProtocol) -> bool:
    """Whether a tensor's data is not in the message while `onnx_ir` writes it."""
    if isinstance(tensor, ir.serde.TensorProtoTensor) or tensor.dtype == ir.DataType.STRING:
        return False  # the message that was read is written again
    return isinstance(tensor, SparseTensor) or is_external(tensor) or tensor.nbytes >= LARGE


def _plan(message: bytes, tensors: Sequence[ir.TensorProtocol]) -> Plan:
    parts = paste(message, lambda number: (tensors[number], tensors[number].nbytes))
    segments = []
    position = 0
    for part in parts:
        if len_ := len(part) if isinstance(part, bytes) else part.nbytes:
            segments.append(Segment(position, part))
            position += len_
    return Plan(b"", segments, position)


def _reason(error: Exception) -> str:
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return " ".join(str(error).split())[:200]
