"""Reader of Circle and TFLite files: bytes -> `Model`. Large constants stay in the source."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from o2o import contract, history
from o2o.errors import ModelError
from o2o.formats import tensor_descriptions, unbound_tensor
from o2o.formats.associated_files import read_archive
from o2o.formats.schema import QUANTIZATION_CONSTANTS, SUBGRAPH_FIELDS, Dialect, Span, detect
from o2o.formats.tensors import LARGE, SourceTensor, constant
from o2o.litertlm import language_model
from o2o.model import CUSTOM_DOMAIN, DOMAIN, Model, Signature, quantization_constants
from o2o.streams import Source

# Fields that the IR represents itself. Every other field with a value goes to meta["fields"].
TENSOR_FIELDS = {"shape", "type", "buffer", "name"}
OPERATOR_FIELDS = {
    "opcodeIndex", "inputs", "outputs", "builtinOptions", "builtinOptionsType",
    "builtinOptions2", "builtinOptions2Type", "intermediates",
    "largeCustomOptionsOffset", "largeCustomOptionsSize",
}  # fmt: skip
OWN_SUBGRAPH_FIELDS = {"tensors", "inputs", "outputs", "operators", "name"}
OWN_METADATA = (contract.METADATA_NAME, history.METADATA_NAME, unbound_tensor.METADATA_NAME)
MODEL_FIELDS = {"operatorCodes", "subgraphs", "buffers", "metadata", "metadataBuffer", "signatureDefs"}


def read(source: Source) -> Model:
    """Read a model without loss: writing the result gives an equivalent file, field by field.

    Of a `.litertlm` file its language model is read, a TFLite file.

    Args:
        source: The bytes of a Circle, TFLite or `.litertlm` file. It must outlive the model, which reads
            constants on demand.

    Returns:
        The model.

    Raises:
        ModelError: The file is truncated, damaged or has another format.
    """
    source = language_model(source)
    name, data = source.name, source.header
    dialect = detect(data, name)
    try:
        return _Reader(dialect, source).model()
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from error
    except (
        struct.error,
        IndexError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        OverflowError,
    ) as error:
        description = f"truncated or damaged {dialect.name} file of {len(data)} bytes"
        raise ModelError(f"{name}: {description} (--debug shows what is missing)") from error


def text_of(value: Any) -> str | None:
    """Decode a string of a table.

    Args:
        value: Bytes, text or None.

    Returns:
        The text; None for None.
    """
    return value.decode() if isinstance(value, bytes) else value


def other_fields(table: Any, known: set[str]) -> dict[str, Any]:
    """Return the fields of a table that the IR does not represent itself.

    Args:
        table: An object-API table.
        known: Names of the fields that the IR represents.

    Returns:
        The other fields that differ from the schema's default.
    """
    default = vars(type(table)())
    return {
        key: value
        for key, value in vars(table).items()
        if key not in known and not _same(value, default[key])
    }  # fmt: skip


def _same(value: Any, default: Any) -> bool:
    return value is default or (not isinstance(value, (np.ndarray, list)) and value == default)


class _Reader:
    def __init__(self, dialect: Dialect, source: Source) -> None:
        self.dialect = dialect
        self.source = source
        self.table, self.spans = dialect.unpack_header(source.header)
        self._check_size()
        self.external, self.unused = self._read_external()
        # Operators refer to subgraphs by number, also to later ones. So all graphs are created first.
        self.graphs = [
            ir.Graph([], [], nodes=[], name=text_of(subgraph.name), opset_imports={DOMAIN: 1})
            for subgraph in self.table.subgraphs or ()
        ]
        self.first_values: list[list[ir.Value]] = []
        """The values of each graph's tensors before any operator. An operator may write an input."""
        self.values = [
            self._read_subgraph(graph, subgraph)
            for graph, subgraph in zip(self.graphs, self.table.subgraphs or (), strict=True)
        ]

    def model(self) -> Model:
        if not self.graphs:
            raise ModelError("it holds no subgraph")
        metadata = [
            (text_of(entry.name) or "", self._bytes(entry.buffer)) for entry in self.table.metadata or ()
        ]
        fields = other_fields(self.table, MODEL_FIELDS)
        if self.table.metadataBuffer is not None:
            fields["metadataBuffer"] = [self._bytes(index) for index in self.table.metadataBuffer]
        model = Model(
            self.dialect.name,
            self.graphs,
            [self._signature(signature) for signature in self.table.signatureDefs or ()],
            [entry for entry in metadata if entry[0] not in OWN_METADATA],
            fields=fields,
            unused=self.unused,
            associated_files=read_archive(self.source),
        )
        for key, data in metadata:
            if key == contract.METADATA_NAME:
                contract.attach(model, data)
            elif key == history.METADATA_NAME:
                model.history = history.loads(data)
        tensor_descriptions.attach(model)
        return model

    def _check_size(self) -> None:
        size = self.source.size
        end = max((span.start + span.size for span in self.spans), default=0)
        if size is not None and end > size:
            raise ModelError(f"truncated: a constant ends at byte {end} of {size}")

    def _read_external(self) -> tuple[dict[int, dict[str, Any]], dict[str, dict[str, str]]]:
        for entry in self.table.metadata or ():
            if text_of(entry.name) == unbound_tensor.METADATA_NAME:
                return unbound_tensor.loads(self._bytes(entry.buffer))
        return {}, {}

    def _bytes(self, index: int) -> bytes:
        span = self.spans[index]
        in_header = span.start + span.size <= len(self.source.header)
        return (self._small(span) if in_header else self.source.view(span.start, span.size)).tobytes()

    def _small(self, span: Span) -> np.ndarray:
        """Bytes of the header, uint8 [size]."""
        return np.frombuffer(self.source.header, np.uint8, span.size, span.start)

    def _constant(
        self, index: int, dtype: ir.DataType | None, shape: tuple[int, ...], name: str
    ) -> ir.TensorProtocol | None:
        """The constant in buffer `index`, or None if the buffer is empty."""
        span = self.spans[index]
        if index in self.external and dtype is not None:
            return unbound_tensor.UnboundTensor(name, dtype=dtype, shape=shape, **self.external[index])
        if span.size == 0:
            return None
        if span.size >= LARGE or span.start + span.size > len(self.source.header):
            return SourceTensor(self.source, span, dtype, shape, name)
        return constant(self._small(span), dtype, shape, name)

    def _read_subgraph(self, graph: ir.Graph, table: Any) -> list[ir.Value]:
        names: set[str] = set()
        values = [self._value(tensor, names, index) for index, tensor in enumerate(table.tensors or ())]
        for value in values:
            _set_quantization_constants(value, values)
        inputs = _graph_values(table.inputs, values)
        self.first_values.append([*values])
        written = {id(value) for value in values if value in inputs or value.const_value is not None}

        def write(index: int) -> ir.Value:
            """The value that an operator computes into a tensor. A second one gets a value of its own."""
            if id(values[index]) in written:
                values[index] = self._value(table.tensors[index], names, index)
                values[index].const_value = None
            written.add(id(values[index]))
            return values[index]

        nodes = [self._node(operator, values, write) for operator in table.operators or ()]
        graph.inputs.extend(inputs)
        graph.extend(nodes)
        graph.outputs.extend(_graph_values(table.outputs, values))
        for value in values:
            if value.const_value is not None and value.producer() is None and not value.is_graph_input():
                graph.register_initializer(value)
        loose = loose_values(values, nodes)
        if loose:
            graph.meta["loose"] = loose
        if fields := other_fields(table, OWN_SUBGRAPH_FIELDS):
            graph.meta["fields"] = fields
        return values

    def _value(self, tensor: Any, names: set[str], index: int) -> ir.Value:
        """A tensor as a value. Names are unique in the IR; `meta["name"]` has the file's name if it is
        not."""
        raw_name = text_of(tensor.name)
        name = unique_name(raw_name, index, names)
        shape = tuple(int(dim) for dim in tensor.shape) if tensor.shape is not None else ()
        dtype = self.dialect.dtypes.get(tensor.type)
        value = ir.Value(
            name=name, shape=ir.Shape(shape), type=None if dtype is None else ir.TensorType(dtype)
        )
        fields = other_fields(tensor, TENSOR_FIELDS)
        if tensor.shape is None:
            fields["shape"] = None  # a scalar, or unknown; the file distinguishes it from an empty vector
        if dtype is None:
            fields["type"] = tensor.type  # RESOURCE, VARIANT and GGML blocks have no type in the IR
        if fields:
            value.meta["fields"] = fields
        if name != raw_name:
            value.meta["name"] = (name, raw_name)
        value.const_value = self._constant(tensor.buffer, dtype, shape, name)
        return value

    def _node(self, operator: Any, values: list[ir.Value], write: Callable[[int], ir.Value]) -> ir.Node:
        code = self.table.operatorCodes[operator.opcodeIndex]
        # Files older than builtinCode have only the byte-sized field; newer ones keep it at most 127.
        number = code.builtinCode or code.deprecatedBuiltinCode
        name = self.dialect.operators.get(number)
        if name is None:
            raise ModelError(
                f"operator code {number} is unknown to this version of the {self.dialect.name} schema"
            )
        domain, op_type = DOMAIN, name
        if name == "CUSTOM":
            domain, op_type = CUSTOM_DOMAIN, text_of(code.customCode) or ""
        attributes, options, fields = options_of(operator, self.dialect, self.graphs)
        node = ir.Node(
            domain,
            op_type,
            [None if index < 0 else values[index] for index in _indices(operator.inputs)],
            attributes,
            outputs=[
                _absent() if index < 0 else write(index) for index in _indices(operator.outputs)
            ],
            version=code.version,
        )  # fmt: skip
        node.meta["options"] = options
        fields |= other_fields(operator, OPERATOR_FIELDS)
        if operator.largeCustomOptionsSize:
            start, size = operator.largeCustomOptionsOffset, operator.largeCustomOptionsSize
            fields["customOptions"] = self.source.view(start, size)
        if fields:
            node.meta["fields"] = fields
        if operator.intermediates is not None:
            node.meta["intermediates"] = [values[index] for index in _indices(operator.intermediates)]
        return node

    def _signature(self, table: Any) -> Signature:
        index = table.subgraphIndex
        inputs, outputs = (
            {text_of(entry.name) or "": values[entry.tensorIndex] for entry in entries or ()}
            for values, entries in (
                (self.first_values[index], table.inputs),
                (self.values[index], table.outputs),
            )
        )
        signature = text_of(table.signatureKey) or ""
        for name, value in (*inputs.items(), *outputs.items()):
            if not (value.is_graph_input() or value.is_graph_output()):
                raise ModelError(
                    f"damaged: signature {signature!r} names the tensor {value.name} as {name!r}, which is "
                    "neither an input nor an output of its subgraph"
                )
        return Signature(signature, self.graphs[index], inputs, outputs)


def unique_name(raw: str | None, index: int, names: set[str]) -> str:
    """Return the name of a tensor in the IR, where names are unique.

    Args:
        raw: The name in the file.
        index: The number of the tensor.
        names: The names of the tensors before it; the result is added.

    Returns:
        The file's name, with a suffix if it is empty or not unique.
    """
    name = raw or f"tensor_{index}"
    while name in names:
        name += f"#{index}"
    names.add(name)
    return name


def loose_values(values: Iterable[ir.Value], nodes: Iterable[ir.Node]) -> list[ir.Value]:
    """Return the values of a graph that nothing uses.

    Args:
        values: All values of the graph.
        nodes: All nodes of the graph.

    Returns:
        Those that are no input, output, initializer, operand, result or quantization parameter.
    """
    values = list(values)
    used = {id(value) for node in nodes for value in (*node.inputs, *node.outputs)}
    used |= {id(value) for node in nodes for value in node.meta.get("intermediates", ())}
    used |= {id(other) for value in values for other in quantization_constants(value).values()}
    return [
        value
        for value in values
        if id(value) not in used
        and not (value.is_graph_input() or value.is_graph_output() or value.is_initializer())
    ]


def options_of(
    operator: Any, dialect: Dialect, graphs: Sequence[ir.Graph]
) -> tuple[list[ir.Attr], str | None, dict[str, Any]]:
    """Return the options of an operator.

    Args:
        operator: The object-API table.
        dialect: Its dialect.
        graphs: The graphs of the model, by number.

    Returns:
        The attributes, the name of the options table, and the fields that no attribute can hold.
    """
    options = operator.builtinOptions if operator.builtinOptions is not None else operator.builtinOptions2
    if options is None:
        return [], None, {}
    table = type(options).__name__[:-1]
    attributes, fields = [], {}
    for key, item in vars(options).items():
        name = dialect.ir_field(table, key)
        if (table, key) in SUBGRAPH_FIELDS:
            attributes.append(_subgraph_attribute(name, item, graphs))
        elif item is not None:
            attribute = _attribute(name, item)
            if attribute is None:
                fields[f"options.{key}"] = item
            else:
                attributes.append(attribute)
    return attributes, table, fields


def _subgraph_attribute(name: str, item: Any, graphs: Sequence[ir.Graph]) -> ir.Attr:
    if item is None or isinstance(item, (list, np.ndarray)):
        return ir.AttrGraphs(name, [graphs[index] for index in _indices(item)])
    return ir.AttrGraph(name, graphs[item]) if item >= 0 else ir.AttrInt64(name, item)


def _indices(vector: Iterable[int] | None) -> list[int]:
    """The numbers in `vector`. An optional operand that is absent is -1."""
    indices = [] if vector is None else [int(index) for index in vector]
    if any(index < -1 for index in indices):
        raise IndexError(f"a tensor or subgraph has the number {min(indices)}")
    return indices


def _graph_values(vector: Iterable[int] | None, values: list[ir.Value]) -> list[ir.Value]:
    if -1 in (indices := _indices(vector)):
        raise IndexError("an input or output of the graph has the number -1")
    return [values[index] for index in indices]


def _set_quantization_constants(value: ir.Value, values: list[ir.Value]) -> None:
    """Replace the tensor numbers in the block-wise quantization of `value` by values."""
    quantization = value.meta.get("fields", {}).get("quantization")
    details = getattr(quantization, "details", None)
    constants = {}
    for field in QUANTIZATION_CONSTANTS:
        index = getattr(details, field, -1)
        # 0 is also the default of the field
        if index > 0 or (index == 0 and values[0].const_value is not None):
            constants[field] = values[index]
    if constants:
        value.meta["quantization_constants"] = constants


def _absent() -> ir.Value:
    """An output that the operator does not compute (-1 in the file)."""
    return ir.Value(name="")


def _attribute(name: str, item: Any) -> ir.Attr | None:
    if isinstance(item, (bool, int, np.integer)):
        return ir.AttrInt64(name, int(item))
    if isinstance(item, (float, np.floating)):
        return ir.AttrFloat32(name, float(item))
    if isinstance(item, (bytes, str)):
        return ir.AttrString(name, text_of(item) or "")
    if isinstance(item, (np.ndarray, list)):
        array = np.asarray(item)
        if array.dtype.kind in "iub" or array.size == 0:
            return ir.AttrInt64s(name, [int(x) for x in array])
        if array.dtype.kind == "f":
            return ir.AttrFloat32s(name, [float(x) for x in array])
    return None
