"""Conversion of a `Model` to the object-API tables of its dialect, and to the payloads of its buffers."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import onnx_ir as ir

from o2o import contract, history
from o2o.errors import ModelError
from o2o.formats import tensor_descriptions, unbound_tensor
from o2o.formats.schema import DIALECTS, SUBGRAPH_FIELDS
from o2o.formats.tensor_order import is_absent, tensor_order
from o2o.formats.tensors import storage_key
from o2o.formats.unbound_tensor import UnboundTensor
from o2o.model import CUSTOM_DOMAIN, Model, Signature, quantization_constants


class Tables:
    """Converts a model to FlatBuffers object-API tables, and collects the payloads of its buffers."""

    def __init__(self, model: Model) -> None:
        """Prepare the conversion of `model`.

        Args:
            model: The model, which is not changed.
        """
        self.model = model
        self.dialect = DIALECTS[model.format]
        self.payloads: list[bytes | ir.TensorProtocol] = []
        self.buffer_of: dict[Hashable, int] = {}
        self.external: dict[int, UnboundTensor] = {}
        self.opcode_of: dict[tuple[str, str, int], int] = {}
        self.graph_index = {id(graph): index for index, graph in enumerate(model.graphs)}
        self.tensor_index: list[dict[int, int]] = []

    def build(self) -> tuple[Any, list[bytes | ir.TensorProtocol]]:
        """Convert the model.

        Returns:
            The `ModelT`, and the payload of each buffer from the second on. The data vectors are empty.

        Raises:
            ModelError: The dialect lacks an operator, option, tensor type or field of the model.
        """
        root = self.dialect.table("Model")()
        root.version = self.dialect.version
        self.set_fields(root, {k: v for k, v in self.model.fields.items() if k != "metadataBuffer"})
        root.subgraphs = [self._subgraph(graph) for graph in self.model.graphs]
        root.operatorCodes = [self._operator_code(*key) for key in self.opcode_of]
        root.signatureDefs = [self._signature(s) for s in self.model.signatures] or None
        root.metadata = [self._metadata(name, data) for name, data in self._all_metadata()] or None
        if "metadataBuffer" in self.model.fields:
            root.metadataBuffer = _ints([self._payload(d) for d in self.model.fields["metadataBuffer"]])
        buffer = self.dialect.table("Buffer")
        root.buffers = [buffer() for _ in range(len(self.payloads) + 1)]  # the first means "no data"
        for table in root.buffers[1:]:
            table.data = np.zeros(0, np.uint8)
        return root, self.payloads

    def _all_metadata(self) -> list[tuple[str, bytes]]:
        entries = [
            (contract.METADATA_NAME, contract.dumps(self.model)),
            (history.METADATA_NAME, history.dumps(self.model.history)),
            (unbound_tensor.METADATA_NAME, unbound_tensor.dumps(self.external, self.model.unused)),
        ]
        stored = [
            (name, tensor_descriptions.updated(self.model, data))
            if name == tensor_descriptions.METADATA_NAME
            else (name, data)
            for name, data in self.model.metadata
        ]
        return [*stored, *((name, data) for name, data in entries if data is not None)]

    def _payload(self, payload: bytes | ir.TensorProtocol) -> int:
        self.payloads.append(payload)
        return len(self.payloads)

    def _subgraph(self, graph: ir.Graph) -> Any:
        table = self.dialect.table("SubGraph")()
        table.name = graph.name
        index = self._number_values(graph)
        self.tensor_index.append(index)
        table.tensors = self.tensors
        table.inputs = _ints([index[id(value)] for value in graph.inputs])
        table.outputs = _ints([index[id(value)] for value in graph.outputs])
        table.operators = [self._operator(node, index) for node in graph]
        self.set_fields(table, graph.meta.get("fields", {}))
        return table

    def _number_values(self, graph: ir.Graph) -> dict[int, int]:
        """Tensor numbers by id(value)."""
        values = tensor_order(graph)
        index = {id(value): number for number, value in enumerate(values)}
        self.tensors = [self._tensor(value, index) for value in values]
        return index

    def _tensor(self, value: ir.Value, index: dict[int, int]) -> Any:
        table = self.dialect.table("Tensor")()
        name, raw_name = value.meta.get("name", (None, None))
        table.name = raw_name if value.name == name else value.name
        if value.shape is not None:
            table.shape = _ints(list(value.shape.numpy()))
        if value.dtype is not None:
            if value.dtype not in self.dialect.dtype_codes:
                raise ModelError(f"{value.name}: {self.dialect.name} has no tensor type {value.dtype}")
            table.type = self.dialect.dtype_codes[value.dtype]
        if value.const_value is not None:
            key = storage_key(value.const_value)
            if key not in self.buffer_of:
                self.buffer_of[key] = self._payload(value.const_value)
                if isinstance(value.const_value, UnboundTensor):
                    self.external[self.buffer_of[key]] = value.const_value
            table.buffer = self.buffer_of[key]
        fields = value.meta.get("fields", {})
        if value.shape:  # the shape of a scalar may be absent; a filter may have changed it since
            fields = {key: item for key, item in fields.items() if (key, item) != ("shape", None)}
        self.set_fields(table, fields)
        if "type" in fields and fields["type"] not in self.dialect.enum("TensorType").values():
            raise ModelError(f"{value.name}: {self.dialect.name} has no tensor type {fields['type']}")
        for field, other in quantization_constants(value).items():
            setattr(table.quantization.details, field, index[id(other)])
        return table

    def _operator(self, node: ir.Node, index: dict[int, int]) -> Any:
        table = self.dialect.table("Operator")()
        custom = node.domain == CUSTOM_DOMAIN
        key = ("CUSTOM" if custom else node.op_type, node.op_type if custom else "", _version(node))
        table.opcodeIndex = self.opcode_of.setdefault(key, len(self.opcode_of))
        table.inputs = _ints([-1 if value is None else index[id(value)] for value in node.inputs])
        table.outputs = _ints([-1 if is_absent(value) else index[id(value)] for value in node.outputs])
        self.set_options(table, node, key[0])
        if "intermediates" in node.meta:
            table.intermediates = _ints([index[id(value)] for value in node.meta["intermediates"]])
        self.set_fields(table, _without_options(node.meta.get("fields", {})))
        return table

    def _operator_code(self, operator: str, custom_code: str, version: int) -> Any:
        if operator not in self.dialect.operator_codes:
            raise ModelError(f"{self.dialect.name} has no operator {operator}")
        table = self.dialect.table("OperatorCode")()
        table.builtinCode = self.dialect.operator_codes[operator]
        table.deprecatedBuiltinCode = min(table.builtinCode, 127)
        table.customCode = custom_code or None
        table.version = version
        return table

    def set_options(self, table: Any, node: ir.Node, operator: str) -> None:
        """Set the options of an operator.

        Args:
            table: The object-API table of the operator.
            node: The operator.
            operator: The name of its builtin; `CUSTOM` for a custom operator.

        Raises:
            ModelError: The dialect lacks an option.
        """
        name = node.meta.get("options", self.dialect.options_table(operator))
        if name is None:
            return
        options = self.dialect.table(name)()
        defaults = vars(options)
        names = {self.dialect.ir_field(name, field): field for field in defaults}
        for attribute in node.attributes.values():
            if attribute.name not in names:
                raise ModelError(
                    f"{node.op_type}: {self.dialect.name} has no option {attribute.name} in {name}"
                )
            field = names[attribute.name]
            setattr(options, field, self._option(name, field, attribute, defaults[field]))
        for key, item in node.meta.get("fields", {}).items():
            if key.startswith("options."):
                self.set_fields(options, {key.removeprefix("options."): item})
        union = "builtinOptions" if name in self.dialect.unions["BuiltinOptions"] else "builtinOptions2"
        setattr(table, union, options)
        setattr(table, f"{union}Type", self.dialect.unions[union[0].upper() + union[1:]][name])

    def _option(self, table: str, field: str, attribute: ir.Attr, default: Any) -> Any:
        value = attribute.value
        if (table, field) in SUBGRAPH_FIELDS and attribute.type == ir.AttributeType.GRAPH:
            return self.graph_index[id(value)]
        if (table, field) in SUBGRAPH_FIELDS and attribute.type == ir.AttributeType.GRAPHS:
            return _ints([self.graph_index[id(graph)] for graph in value])
        if isinstance(default, bool):
            return bool(value)
        if attribute.type == ir.AttributeType.INTS:
            return list(value)
        if attribute.type == ir.AttributeType.FLOATS:
            return list(value)
        return value

    def _signature(self, signature: Signature) -> Any:
        table = self.dialect.table("SignatureDef")()
        table.signatureKey = signature.name
        table.subgraphIndex = self.graph_index[id(signature.graph)]
        index = self.tensor_index[table.subgraphIndex]

        def mapping(name: str, value: ir.Value) -> Any:
            entry = self.dialect.table("TensorMap")()
            entry.name = name
            if id(value) not in index:
                raise ModelError(f"signature {signature.name!r}: {name!r} is not a tensor of its graph")
            entry.tensorIndex = index[id(value)]
            return entry

        table.inputs = [mapping(name, value) for name, value in signature.inputs.items()]
        table.outputs = [mapping(name, value) for name, value in signature.outputs.items()]
        return table

    def _metadata(self, name: str, data: bytes) -> Any:
        table = self.dialect.table("Metadata")()
        table.name = name
        table.buffer = self._payload(data)
        return table

    def set_fields(self, table: Any, fields: dict[str, Any]) -> None:
        """Set fields of a table, with every table among them converted to this dialect.

        Args:
            table: An object-API table.
            fields: The fields by name.

        Raises:
            ModelError: The dialect lacks a field.
        """
        names = vars(table)
        for key, value in fields.items():
            if key not in names:
                field = f"{type(table).__name__[:-1]}.{key}"
                raise ModelError(f"{self.dialect.name} has no field {field}, which this model uses")
            setattr(table, key, self._adopt(value))

    def _adopt(self, value: Any) -> Any:
        """`value` with every generated table replaced by this dialect's own, and unions renumbered."""
        if isinstance(value, list):
            return [self._adopt(item) for item in value]
        if isinstance(value, (np.ndarray, bytes, str)) or not hasattr(value, "__dict__"):
            return value
        converted = self.dialect.table(type(value).__name__[:-1])()
        default = vars(type(value)())
        self.set_fields(
            converted,
            {
                key: item
                for key, item in vars(value).items()
                if key in vars(converted) or item is not default[key]
            },
        )
        if getattr(converted, "details", None) is not None:
            details = type(converted.details).__name__[:-1]
            converted.detailsType = self.dialect.unions["QuantizationDetails"][details]
        return converted


def _ints(values: list[int]) -> np.ndarray:
    return np.asarray(values, np.int32)


def _version(node: ir.Node) -> int:
    return 1 if node.version is None else node.version


def _without_options(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if not key.startswith("options.")}
