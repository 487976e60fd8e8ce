"""A model as its file would give it, without the file: what one filter hands to the next in one process.

Writing and reading a model normalizes it: tensors are numbered, names become unique, options get defaults,
numbers their stored width, computed constants their bytes. Filters depend on these. `Handover` changes a
model in place into exactly the model that reading its file would give. It takes a tenth of the time.

Fields that are not normalized yet are packed into a FlatBuffers table of their own and unpacked again. So the
schema decides what becomes of them.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeGuard

import flatbuffers
import numpy as np
import onnx_ir as ir

from o2o import contract, history
from o2o.errors import O2oError
from o2o.formats.onnx_writer import handed_over
from o2o.formats.reader import (
    MODEL_FIELDS,
    OPERATOR_FIELDS,
    OWN_SUBGRAPH_FIELDS,
    TENSOR_FIELDS,
    loose_values,
    options_of,
    other_fields,
    unique_name,
)
from o2o.formats.schema import DIALECTS, QUANTIZATION_CONSTANTS, Dialect, Span
from o2o.formats.tables import Tables
from o2o.formats.tensor_order import tensor_order
from o2o.formats.tensors import (
    LARGE,
    SourceTensor,
    StreamedTensor,
    bytes_in_memory,
    constant,
    storage_key,
    stream,
)
from o2o.formats.unbound_tensor import UnboundTensor
from o2o.model import CUSTOM_DOMAIN, Model, quantization_constants
from o2o.streams import FileSource, MemorySource, Source

_OptionsKey = tuple[Hashable, ...]


class Handover:
    """Normalizes models. One object serves a whole pipeline: it remembers what it has normalized."""

    def __init__(self) -> None:
        self._options: dict[_OptionsKey, tuple[list[ir.Attr], str | None] | None] = {}
        """The options of an operator when they are read again; None if they do not change."""
        self._normal: dict[int, Any] = {}
        """Normalized tables and constants, by id. They stay alive, so that no id is used again."""

    def __call__(self, model: Model) -> Model:
        """Normalize a model.

        Args:
            model: The model, changed in place.

        Returns:
            The same model; another one of ONNX.

        Raises:
            ModelError: The model cannot be written in its format.
            O2oError: There is no room for constants that are computed.
        """
        if model.format == "onnx":
            return handed_over(model)
        dialect = DIALECTS[model.format]
        tables = Tables(model)
        roles = contract.dumps(model)
        orders = [tensor_order(graph) for graph in model.graphs]
        storage = _Storage(value for values in orders for value in values)
        for graph, values in zip(model.graphs, orders, strict=True):
            graph.initializers.clear()
            names: set[str] = set()
            index = {id(value): number for number, value in enumerate(values)}
            for number, value in enumerate(values):
                self._normalize_value(value, number, names, index, tables)
            for value in values:
                tensor = value.const_value
                if tensor is None or self._is_stored(tensor, value):
                    continue
                value.const_value = storage.constant_of(value)
                self._remember(value.const_value)
            for node in graph:
                self._normalize_node(node, tables, model, dialect)
            _set_initializers(graph, values)
            fields = self._fields("SubGraph", graph.meta.get("fields", {}), OWN_SUBGRAPH_FIELDS, tables)
            _keep_meta(graph.meta, fields=fields, loose=loose_values(values, graph))
        self._normalize_model(model, tables, dialect)
        if roles is not None:
            contract.attach(model, roles)
        return model

    def _normalize_model(self, model: Model, tables: Tables, dialect: Dialect) -> None:
        fields = {key: item for key, item in model.fields.items() if key != "metadataBuffer"}
        fields = self._fields("Model", {"version": dialect.version, **fields}, MODEL_FIELDS, tables)
        if "metadataBuffer" in model.fields:
            fields["metadataBuffer"] = model.fields["metadataBuffer"]
        model.fields = fields
        if not any(
            isinstance(value.const_value, UnboundTensor)
            for graph in model.graphs
            for value in (*graph.initializers.values(), *graph.inputs)
        ):
            model.unused = {}
        if (entries := history.dumps(model.history)) is not None:
            model.history = history.loads(entries)

    def _normalize_value(
        self, value: ir.Value, number: int, names: set[str], index: Mapping[int, int], tables: Tables
    ) -> None:
        meta = value.meta.data  # the dict itself: most of the time is spent here
        raw = value.name
        if "name" in meta and meta["name"][0] == raw:
            raw = meta["name"][1]
        name = unique_name(raw, number, names)
        if value.name != name:
            value.name = name
        if "fields" not in meta and name == raw and value.shape is not None and value.dtype is not None:
            meta.clear()
            return
        fields = dict(meta.get("fields", {}))
        if value.shape is None:
            value.shape, fields["shape"] = ir.Shape(()), None
        elif value.shape:
            fields.pop("shape", None)
        scalar, other_type = "shape" in fields, fields.pop("type", None)
        fields.pop("shape", None)
        if value.dtype is not None:
            other_type = None
        elif other_type is None:
            value.type = ir.TensorType(ir.DataType.FLOAT)  # the schema's default
        constants = dict(quantization_constants(value))
        if constants:
            fields["quantization"] = _with_numbers(fields["quantization"], constants, index)
        fields = self._fields("Tensor", fields, TENSOR_FIELDS, tables)
        if scalar:
            fields["shape"] = None
        if other_type is not None:
            fields["type"] = other_type
        _keep_meta(
            value.meta,
            fields=fields,
            name=(name, raw) if name != raw else None,
            quantization_constants=constants,
        )

    def _normalize_node(self, node: ir.Node, tables: Tables, model: Model, dialect: Dialect) -> None:
        if node.version is None:
            node.version = 1
        meta = node.meta.data
        fields = meta.get("fields", {})
        own, in_options = {}, {}
        if fields:
            own = {key: item for key, item in fields.items() if not key.startswith("options.")}
            in_options = {key: item for key, item in fields.items() if key.startswith("options.")}
            own = self._fields("Operator", own, OPERATOR_FIELDS, tables)
        operator = "CUSTOM" if node.domain == CUSTOM_DOMAIN else node.op_type
        key = None if in_options else _options_key(node, operator, dialect)
        if key is None or key not in self._options:
            table = dialect.table("Operator")()
            tables.set_options(table, node, operator)
            attributes, options, in_options = options_of(_repacked(table), dialect, model.graphs)
            _replace_attributes(node, attributes)
            meta["options"] = options
            if key is not None:
                same = _options_key(node, operator, dialect) == key
                self._options[key] = None if same else (attributes, options)
        elif (known := self._options[key]) is not None:
            _replace_attributes(node, known[0])
            meta["options"] = known[1]
        elif "options" not in meta:
            meta["options"] = dialect.options_table(operator)
        if len(meta) > 1:
            _keep_meta(
                node.meta,
                options=meta["options"],
                fields={**in_options, **own},
                intermediates=meta.get("intermediates"),
            )

    def _fields(self, name: str, fields: dict[str, Any], known: set[str], tables: Tables) -> dict[str, Any]:
        """`fields` of a table as they are read again."""
        if not fields:
            return fields
        dialect = tables.dialect
        defaults = dialect.defaults(name)
        if all(
            key in defaults and self._is_normal(item, defaults[key], dialect) for key, item in fields.items()
        ):
            return {key: fields[key] for key in defaults if key in fields}
        table = dialect.table(name)()
        tables.set_fields(table, fields)
        table = _repacked(table)
        normal = other_fields(table, known)
        for item in normal.values():
            self._remember(item)
        return normal

    def _is_normal(self, item: Any, default: Any, dialect: Dialect) -> bool:
        if isinstance(item, np.ndarray):
            return not item.flags.owndata  # a view of a file
        if isinstance(item, (bool, int, float, bytes)):
            return item != default
        return id(item) in self._normal and isinstance(item, dialect.table(type(item).__name__[:-1]))

    def _is_stored(self, tensor: ir.TensorProtocol, value: ir.Value) -> bool:
        """Whether a constant is normalized already, and the value has not got another dtype or shape."""
        return id(tensor) in self._normal and tensor.dtype == value.dtype and tensor.shape == value.shape

    def _remember(self, item: Any) -> None:
        if hasattr(item, "__dict__"):
            self._normal[id(item)] = item


class HandedModel(Source):
    """A model that stands for the input of a filter. It can be taken once."""

    name = "<stdin>"
    header = memoryview(b"")

    def __init__(self, model: Model, sources: Sequence[Source]) -> None:
        """Hold a model.

        Args:
            model: The model, normalized.
            sources: What its constants are read from, until `finish`.
        """
        self._model: Model | None = model
        self._sources = sources

    def take(self) -> Model:
        """Return the model, which the caller may change.

        Returns:
            The model.
        """
        model, self._model = self._model, None
        assert model is not None, "a handed model is taken once"
        return model

    def finish(self) -> None:
        for source in self._sources:
            source.finish()


class _Storage:
    """The constants of a model over the bytes that a file would hold.

    Constants that are computed while they are written are written once, into an unnamed temporary file.
    """

    def __init__(self, values: Iterable[ir.Value]) -> None:
        """Write the constants that are computed.

        Args:
            values: All values of the model.

        Raises:
            O2oError: There is no room for them.
        """
        self._small: dict[Hashable, np.ndarray] = {}
        self._large: dict[Hashable, tuple[Source, Span]] = {}
        spans: dict[Hashable, Span] = {}
        position = 0
        with tempfile.TemporaryFile() as spool:
            try:
                for tensor in filter(_is_computed, (value.const_value for value in values)):
                    if (key := storage_key(tensor)) not in spans:
                        spans[key] = Span(position, tensor.nbytes)
                        stream(tensor, spool)
                        position += tensor.nbytes
                spool.flush()
            except OSError as error:
                raise O2oError(
                    f"constants must be stored temporarily, but {tempfile.gettempdir()} has no room "
                    f"({error.strerror}): set TMPDIR to another folder"
                ) from error
            if spans:
                source = FileSource(spool.fileno(), "a temporary file")
                self._large = {key: (source, span) for key, span in spans.items()}

    def constant_of(self, value: ir.Value) -> ir.TensorProtocol | None:
        """The constant of `value`, with its dtype and shape."""
        tensor = value.const_value
        shape, name = tuple(value.shape.numpy()), value.name or ""  # type: ignore[union-attr]
        if isinstance(tensor, UnboundTensor):
            return tensor if tensor.shape == value.shape else tensor.with_shape(shape, name)
        if tensor is None or tensor.nbytes == 0:
            return None
        key = storage_key(tensor)
        if tensor.nbytes < LARGE:
            if key not in self._small:
                raw = bytes_in_memory(tensor)
                self._small[key] = np.frombuffer(tensor.tobytes(), np.uint8) if raw is None else raw
            return constant(self._small[key], value.dtype, shape, name)
        if key not in self._large:
            self._large[key] = _location(tensor)
        return SourceTensor(*self._large[key], value.dtype, shape, name)


def _is_computed(tensor: ir.TensorProtocol | None) -> TypeGuard[StreamedTensor]:
    """Whether the bytes of a large constant are computed while they are written."""
    in_place = SourceTensor, UnboundTensor
    return isinstance(tensor, StreamedTensor) and not isinstance(tensor, in_place) and tensor.nbytes >= LARGE


def _location(tensor: ir.TensorProtocol) -> tuple[Source, Span]:
    """The place of a large constant: in its source, or in memory."""
    if isinstance(tensor, SourceTensor):
        return tensor.source, tensor.span
    raw = bytes_in_memory(tensor)
    return MemorySource(tensor.tobytes() if raw is None else raw.data), Span(0, tensor.nbytes)


def _set_initializers(graph: ir.Graph, values: Iterable[ir.Value]) -> None:
    """Register the constants of a graph in the order of their numbers."""
    for value in values:
        if value.const_value is not None and value.producer() is None and not value.is_graph_input():
            graph.register_initializer(value)


def _with_numbers(quantization: Any, constants: Mapping[str, ir.Value], index: Mapping[int, int]) -> Any:
    """The quantization of a tensor whose block-wise parameters refer to tensors by their numbers."""
    quantization = copy.copy(quantization)
    quantization.details = copy.copy(quantization.details)
    for field in QUANTIZATION_CONSTANTS:
        if field in constants:
            setattr(quantization.details, field, index[id(constants[field])])
    return quantization


def _options_key(node: ir.Node, operator: str, dialect: Dialect) -> _OptionsKey | None:
    """What determines the options of a node; None if a graph is among them."""
    items: list[Hashable] = [dialect.name, operator, node.meta.data.get("options", "")]
    for item in node.attributes.data.values():
        number = item.value
        kind = type(number)
        if kind not in (int, float, str, bool):
            if item.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
                return None
            number = tuple(number)
        items += [item.name, item.type, kind.__name__, number]
    return tuple(items)


def _replace_attributes(node: ir.Node, attributes: Iterable[ir.Attr]) -> None:
    node.attributes.clear()
    for attribute in attributes:
        node.attributes.add(attribute)


def _keep_meta(meta: Any, **entries: Any) -> None:
    """Keep these entries alone. `options` may be None; others are dropped if they are empty."""
    meta.clear()
    for key, item in entries.items():
        if item or key == "options" or (key == "intermediates" and item is not None):
            meta[key] = item


def _repacked(table: Any) -> Any:
    """A table of the object API, packed and unpacked."""
    builder = flatbuffers.Builder(256)
    builder.Finish(table.Pack(builder))
    return type(table).InitFromPackedBuf(bytes(builder.Output()))
