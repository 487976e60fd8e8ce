"""Parts of an ONNX message that `onnx_ir` does not represent: put where it keeps them, and put back.

    sparse initializers                         ->  an initializer whose data is a `SparseTensor`
    sparse tensors and byte strings in attributes  ->  a string attribute with the message's bytes
    maps, opaque types, types without a dtype   ->  an entry of the value's metadata with the message's bytes
    attributes without a type (IR version 1)    ->  the type of the field that is set

Empty results at the end of a node are restored by counting them. Value infos of initializers that repeat the
tensor's dtype and shape are dropped.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from o2o.formats.protobuf_wire import MARK

_TYPE_KEY = f"{MARK}/type"
_ATTRIBUTE = b"\xff" + MARK.encode()
"""How the bytes of an opaque attribute begin. `onnx_ir` keeps strings that are no UTF-8 as bytes."""

_A = onnx.AttributeProto
_FIELD_OF_TYPE = {
    _A.FLOAT: "f", _A.INT: "i", _A.STRING: "s", _A.TENSOR: "t", _A.GRAPH: "g", _A.TYPE_PROTO: "tp",
    _A.FLOATS: "floats", _A.INTS: "ints", _A.STRINGS: "strings", _A.TENSORS: "tensors",
    _A.GRAPHS: "graphs", _A.TYPE_PROTOS: "type_protos",
    _A.SPARSE_TENSOR: "sparse_tensor", _A.SPARSE_TENSORS: "sparse_tensors",
}  # fmt: skip
_SINGLE = {_A.FLOAT, _A.INT, _A.STRING, _A.TENSOR, _A.GRAPH, _A.SPARSE_TENSOR, _A.TYPE_PROTO}


class SparseTensor(ir.LazyTensor):
    """A sparse initializer. Its numbers are dense when they are asked for."""

    def __init__(self, proto: onnx.SparseTensorProto) -> None:
        """Take a sparse tensor.

        Args:
            proto: Values, indices and shape.
        """
        dtype = ir.DataType(proto.values.data_type)
        super().__init__(self._dense, dtype, ir.Shape(proto.dims), name=proto.values.name)
        self.proto = proto

    def _dense(self) -> ir.TensorProtocol:
        values = ir.serde.deserialize_tensor(self.proto.values).numpy()
        indices = ir.serde.deserialize_tensor(self.proto.indices).numpy()
        dense = np.zeros(tuple(self.proto.dims), values.dtype)
        if indices.ndim == 1:
            dense.reshape(-1)[indices] = values
        else:
            dense[tuple(indices.T)] = values
        return ir.Tensor(dense, self.dtype)


def graphs_of(proto: onnx.ModelProto | onnx.GraphProto | onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs in a message, an outer one before those in it.

    Args:
        proto: A model (with its functions' inner graphs), a graph or a node.

    Yields:
        Each graph.
    """
    if isinstance(proto, onnx.ModelProto):
        yield from graphs_of(proto.graph)
        for function in proto.functions:
            for node in function.node:
                yield from graphs_of(node)
    elif isinstance(proto, onnx.GraphProto):
        yield proto
        for node in proto.node:
            yield from graphs_of(node)
    else:
        for attribute in proto.attribute:
            if attribute.HasField("g"):
                yield from graphs_of(attribute.g)
            for graph in attribute.graphs:
                yield from graphs_of(graph)


def tensors_of(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield the dense tensors in a model.

    Args:
        proto: The model.

    Yields:
        Each initializer and each tensor in an attribute.
    """
    for graph in graphs_of(proto):
        yield from graph.initializer
    for node in _nodes(proto):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    for graph in graphs_of(proto):
        yield from graph.node
    for function in proto.functions:
        yield from function.node


def prepare(proto: onnx.ModelProto, tensors: list[Any]) -> None:
    """Put the parts that `onnx_ir` does not represent where it keeps them.

    Args:
        proto: The model, changed in place.
        tensors: What references with the location `MARK` stand for, by number. Sparse tensors are added.
    """
    for graph in graphs_of(proto):
        for sparse in graph.sparse_initializer:
            reference(graph.initializer.add(), len(tensors), sparse.values.data_type, sparse.dims)
            graph.initializer[-1].name = sparse.values.name
            tensors.append(SparseTensor(sparse))
        graph.ClearField("sparse_initializer")
        for info in (*graph.input, *graph.output, *graph.value_info):
            _hide_type(info)
    for node in _nodes(proto):
        for attribute in node.attribute:
            _hide_attribute(attribute)
    for function in proto.functions:
        for info in function.value_info:
            _hide_type(info)
        for attribute in function.attribute_proto:
            _hide_attribute(attribute)


def reference(proto: onnx.TensorProto, number: int, dtype: int, dims: Sequence[int]) -> None:
    """Write a reference in place of a tensor's data.

    Args:
        proto: The tensor, changed in place.
        number: The number of the reference.
        dtype: ONNX's number of the dtype.
        dims: The shape.
    """
    proto.data_type, proto.data_location = dtype, onnx.TensorProto.EXTERNAL
    proto.dims.extend(dims)
    proto.external_data.add(key="location", value=MARK)
    proto.external_data.add(key="offset", value=str(number))


def referenced(proto: onnx.TensorProto) -> int | None:
    """Return the number of a reference.

    Args:
        proto: A tensor.

    Returns:
        The number; None for another tensor.
    """
    entries = {entry.key: entry.value for entry in proto.external_data}
    return int(entries["offset"]) if entries.get("location") == MARK else None


def _hide_type(info: onnx.ValueInfoProto) -> None:
    if info.HasField("type") and not _is_known(info.type):
        contents = base64.b64encode(info.type.SerializeToString(deterministic=True)).decode()
        info.metadata_props.add(key=_TYPE_KEY, value=contents)
        info.ClearField("type")


def _is_known(proto: onnx.TypeProto) -> bool:
    """Whether `onnx_ir` represents a type."""
    kind = proto.WhichOneof("value")
    if kind in ("sequence_type", "optional_type"):
        inner = getattr(proto, kind)
        return inner.HasField("elem_type") and _is_known(inner.elem_type)
    if kind not in ("tensor_type", "sparse_tensor_type"):
        return False
    tensor = getattr(proto, kind)
    return tensor.HasField("elem_type") and tensor.elem_type in {dtype.value for dtype in ir.DataType}


def _hide_attribute(attribute: onnx.AttributeProto) -> None:
    if attribute.ref_attr_name:
        return
    if attribute.type == _A.UNDEFINED:
        attribute.type = _type_of(attribute)
    match attribute.type:
        case _A.UNDEFINED | _A.SPARSE_TENSOR | _A.SPARSE_TENSORS:
            is_opaque = True
        case _A.STRINGS:
            is_opaque = not all(map(_is_text, attribute.strings))
        case _A.TYPE_PROTO | _A.TYPE_PROTOS:
            types = [attribute.tp] if attribute.type == _A.TYPE_PROTO else attribute.type_protos
            is_opaque = not all(map(_is_known, types))
        case _:
            is_opaque = False
    if is_opaque:
        contents = attribute.SerializeToString(deterministic=True)
        hidden = onnx.AttributeProto(name=attribute.name, type=_A.STRING, s=_ATTRIBUTE + contents)
        attribute.CopyFrom(hidden)


def _type_of(attribute: onnx.AttributeProto) -> Any:
    """The type of an attribute by the field that is set."""
    for type_, field in _FIELD_OF_TYPE.items():
        if attribute.HasField(field) if type_ in _SINGLE else getattr(attribute, field):
            return type_
    return _A.UNDEFINED


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def restore(proto: onnx.ModelProto, model: ir.Model, tensors: Sequence[Any]) -> None:
    """Undo `prepare` in a message that `onnx_ir` wrote.

    Args:
        proto: The message, changed in place.
        model: The model that it was written from.
        tensors: What references stand for, by number.
    """
    _restore_graph(proto.graph, model.graph, tensors)
    for function, of in zip(model.functions.values(), proto.functions, strict=True):
        _restore_nodes(of.node, function.graph, tensors)
        for info in of.value_info:
            _restore_type(info)
        for attribute in of.attribute_proto:
            _restore_attribute(attribute)


def make_external(proto: onnx.ModelProto, external: Callable[[int], dict[str, str]]) -> None:
    """Replace references by external data.

    Args:
        proto: The message, changed in place.
        external: Returns the entries of external data for a reference; none for one that stays a reference.
    """
    for tensor in tensors_of(proto):
        number = referenced(tensor) if tensor.external_data else None
        entries = external(number) if number is not None else {}
        if entries:
            del tensor.external_data[:]
            for key, text in entries.items():
                tensor.external_data.add(key=key, value=text)


def _restore_graph(proto: onnx.GraphProto, graph: ir.Graph, tensors: Sequence[Any]) -> None:
    dense, initializers = [], {}
    for tensor in proto.initializer:
        number = referenced(tensor) if tensor.external_data else None
        if number is not None and isinstance(tensors[number], SparseTensor):
            sparse = proto.sparse_initializer.add()
            sparse.CopyFrom(tensors[number].proto)
            sparse.values.name = tensor.name
        else:
            dense.append(tensor)
        initializers[tensor.name] = tensor
    if len(dense) < len(proto.initializer):
        dense = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in dense]
        del proto.initializer[:]
        proto.initializer.extend(dense)
    infos = [i for i in proto.value_info if not _is_repeated(i, initializers.get(i.name))]
    if len(infos) < len(proto.value_info):
        infos = [onnx.ValueInfoProto.FromString(info.SerializeToString()) for info in infos]
        del proto.value_info[:]
        proto.value_info.extend(infos)
    for info in (*proto.input, *proto.output, *proto.value_info):
        _restore_type(info)
    _restore_nodes(proto.node, graph, tensors)


def _is_repeated(info: onnx.ValueInfoProto, tensor: onnx.TensorProto | None) -> bool:
    """Whether a value info says no more than the tensor of an initializer."""
    if tensor is None or info.metadata_props or info.doc_string or info.type.denotation:
        return False
    dims = info.type.tensor_type.shape.dim
    same = [dim.dim_value for dim in dims] == list(tensor.dims) and not any(dim.denotation for dim in dims)
    return same and info.type.tensor_type.elem_type == tensor.data_type


def _restore_nodes(protos: Any, graph: ir.Graph, tensors: Sequence[Any]) -> None:
    for proto, node in zip(protos, graph, strict=True):
        proto.output.extend([""] * (len(node.outputs) - len(proto.output)))
        for attribute in proto.attribute:
            if attribute.type == _A.STRING:
                _restore_attribute(attribute)
            elif attribute.type == _A.GRAPH:
                _restore_graph(attribute.g, node.attributes[attribute.name].as_graph(), tensors)
            elif attribute.type == _A.GRAPHS:
                inner = node.attributes[attribute.name].as_graphs()
                for of, each in zip(attribute.graphs, inner, strict=True):
                    _restore_graph(of, each, tensors)


def _restore_attribute(attribute: onnx.AttributeProto) -> None:
    if attribute.s.startswith(_ATTRIBUTE):
        attribute.CopyFrom(onnx.AttributeProto.FromString(attribute.s[len(_ATTRIBUTE) :]))


def _restore_type(info: onnx.ValueInfoProto) -> None:
    for index, entry in enumerate(info.metadata_props):
        if entry.key == _TYPE_KEY:
            info.type.ParseFromString(base64.b64decode(entry.value))
            del info.metadata_props[index]
            return
