"""The FlatBuffers schemas of the two dialects, Circle and TFLite, behind one interface.

Circle is a superset of TFLite with a few negative operator codes. Differences in the generated Python:
packaging (one module for each table or for all), some enum values, and one pair of field names.

Sources: `circle_schema` (Samsung ONE's res/CircleSchema) and `ai_edge_litert.schema_py_generated`
(LiteRT's tflite/converter/schema).
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from o2o.errors import ModelError
from o2o.model import Format
from o2o.streams.framing import parse_frame

# Operators whose options table has another name than the operator.
_OPTIONS_BY_OPERATOR = {
    "AVERAGE_POOL_2D": "Pool2DOptions",
    "MAX_POOL_2D": "Pool2DOptions",
    "L2_POOL_2D": "Pool2DOptions",
    "L2_NORMALIZATION": "L2NormOptions",
    "MAXIMUM": "MaximumMinimumOptions",
    "MINIMUM": "MaximumMinimumOptions",
    "CONV_3D_TRANSPOSE": "Conv3DOptions",
    "UNIDIRECTIONAL_SEQUENCE_RNN": "SequenceRNNOptions",
    **dict.fromkeys(["RANDOM_STANDARD_NORMAL", "RANDOM_UNIFORM", "MULTINOMIAL"], "RandomOptions"),
    **dict.fromkeys(
        ["MEAN", "SUM", "REDUCE_PROD", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_ANY", "REDUCE_ALL"],
        "ReducerOptions",
    ),
}

# Fields that hold subgraph numbers in the file and graphs in the IR.
SUBGRAPH_FIELDS = {
    ("CallOnceOptions", "initSubgraphIndex"),
    ("CallOptions", "subgraph"),
    ("IfOptions", "thenSubgraphIndex"),
    ("IfOptions", "elseSubgraphIndex"),
    ("WhileOptions", "condSubgraphIndex"),
    ("WhileOptions", "bodySubgraphIndex"),
    ("StableHLOCompositeOptions", "decompositionSubgraphIndex"),
    ("StablehloCaseOptions", "branchSubgraphIndices"),
    ("StablehloCustomCallOptions", "calledComputations"),
    ("StablehloReduceOptions", "bodySubgraphIndex"),
    ("StablehloReduceWindowOptions", "bodySubgraphIndex"),
    ("StablehloScatterOptions", "updateComputationSubgraphIndex"),
    ("StablehloSortOptions", "comparatorSubgraphIndex"),
    ("StablehloWhileOptions", "condSubgraphIndex"),
    ("StablehloWhileOptions", "bodySubgraphIndex"),
}

# Fields of `BlockwiseQuantization` that hold tensor numbers in the file and values in the IR.
QUANTIZATION_CONSTANTS = ("scales", "zeroPoints")

# Fields with different names in the dialects: (table, TFLite's name) -> Circle's name, which the IR uses.
_TFLITE_FIELD_NAMES = {
    ("BatchMatMulOptions", "adjX"): "adjointLhs",
    ("BatchMatMulOptions", "adjY"): "adjointRhs",
}

_DTYPES = {
    "FLOAT32": ir.DataType.FLOAT,
    "FLOAT64": ir.DataType.DOUBLE,
    "FLOAT16": ir.DataType.FLOAT16,
    "BFLOAT16": ir.DataType.BFLOAT16,
    "FLOAT8_E4M3FN": ir.DataType.FLOAT8E4M3FN,
    "FLOAT8_E5M2": ir.DataType.FLOAT8E5M2,
    "BOOL": ir.DataType.BOOL,
    "STRING": ir.DataType.STRING,
    **{
        name: getattr(ir.DataType, name)
        for name in (
            "INT2", "INT4", "INT8", "INT16", "INT32", "INT64",
            "UINT4", "UINT8", "UINT16", "UINT32", "UINT64",
            "COMPLEX64", "COMPLEX128",
        )
        if hasattr(ir.DataType, name)
    },
}  # fmt: skip


DATA_SLOT, OFFSET_SLOT, SIZE_SLOT = 4, 6, 8  # vtable slots of the Buffer table, in both dialects


@dataclass(frozen=True)
class Span:
    """A range of bytes in the file.

    Attributes:
        start: The first byte.
        size: The number of bytes.
        outside: Stored by `Buffer.offset` and `Buffer.size`, beyond the range of FlatBuffers' own offsets.
    """

    start: int
    size: int
    outside: bool = False


@dataclass(frozen=True)
class Dialect:
    """One of the two file formats, with lookups in its generated schema.

    Attributes:
        name: The format.
        identifier: The FlatBuffers file identifier, bytes 4 to 8 of a file.
        version: The version of the Model table that the format's runtime requires.
    """

    name: Format
    identifier: bytes
    version: int

    def table(self, name: str) -> type[Any]:
        """Return the generated object-API class of a table.

        Args:
            name: The table, such as `AddOptions`.

        Returns:
            The class, such as `AddOptionsT`.

        Raises:
            ModelError: The schema has no such table.
        """
        table: type[Any] | None = getattr(self._module(name), f"{name}T", None)
        if table is None:
            raise ModelError(f"{self.name} has no table {name}")
        return table

    @functools.cache  # noqa: B019 - the two dialects live as long as the program
    def defaults(self, name: str) -> dict[str, Any]:
        """Return the fields of a table and their defaults.

        Args:
            name: The table, such as `Tensor`.

        Returns:
            The defaults in the order of the schema. They must not be changed.
        """
        return vars(self.table(name)())

    def has_table(self, name: str) -> bool:
        return getattr(self._module(name), f"{name}T", None) is not None

    def enum(self, name: str) -> dict[str, int]:
        """Return the members of an enum or union type.

        Args:
            name: The enum, such as `BuiltinOperator`.

        Returns:
            The number of each member, by its name.
        """
        members = vars(getattr(self._module(name), name))
        return {key: value for key, value in members.items() if isinstance(value, int)}

    def _module(self, name: str) -> Any:
        if self.name == "circle":
            from circle_schema import circle

            return getattr(circle, name, None)
        from ai_edge_litert import schema_py_generated

        return schema_py_generated

    def unpack_header(self, data: Any) -> tuple[Any, list[Span]]:
        """Unpack the tables of a file.

        Args:
            data: The bytes of the file, or at least its header.

        Returns:
            The object-API `ModelT` without its buffers, and the byte range of each buffer. Vectors of numbers
            are views into `data`.

        Raises:
            ModelError: The subgraphs cannot all be in `data`, or a buffer has no size.
        """
        root = self._without_buffers.GetRootAs(data, 0)
        _check_subgraphs(root, len(data))
        table = self.table("Model").InitFromObj(root)
        return table, _spans([root.Buffers(index) for index in range(root.BuffersLength())], data)

    @functools.cached_property
    def _without_buffers(self) -> Any:
        """The generated accessor of the Model table, without the buffers when it is unpacked."""
        model = self._module("Model").Model

        class WithoutBuffers(model):  # type: ignore[misc, valid-type]
            @classmethod
            def GetRootAs(cls, data: Any, offset: int = 0) -> Any:
                root = cls()
                root.Init(data, struct.unpack_from("<I", data, offset)[0] + offset)
                return root

            def BuffersIsNone(self) -> bool:
                return True

        return WithoutBuffers

    @functools.cached_property
    def operators(self) -> dict[int, str]:
        return {code: name for name, code in self.enum("BuiltinOperator").items()}

    @functools.cached_property
    def operator_codes(self) -> dict[str, int]:
        return self.enum("BuiltinOperator")

    @functools.cached_property
    def unions(self) -> dict[str, dict[str, int]]:
        """The type number of each member table, by union."""
        names = ("BuiltinOptions", "BuiltinOptions2", "QuantizationDetails", "SparseIndexVector")
        return {name: self.enum(name) for name in names}

    @functools.cached_property
    def dtypes(self) -> dict[int, ir.DataType]:
        return {code: _DTYPES[name] for name, code in self.enum("TensorType").items() if name in _DTYPES}

    @functools.cached_property
    def dtype_codes(self) -> dict[ir.DataType, int]:
        return {dtype: code for code, dtype in self.dtypes.items()}

    def ir_field(self, table: str, name: str) -> str:
        return _TFLITE_FIELD_NAMES.get((table, name), name) if self.name == "tflite" else name

    @functools.cache  # noqa: B019 - the two dialects live as long as the program
    def options_table(self, operator: str) -> str | None:
        """Return the name of an operator's options table.

        Args:
            operator: A builtin operator, such as `ADD`.

        Returns:
            The table, such as `AddOptions`; None if the operator has no options.
        """
        if operator in _OPTIONS_BY_OPERATOR:
            return _OPTIONS_BY_OPERATOR[operator]
        return self._options_by_folded_name.get(operator.replace("_", "").lower() + "options")

    @functools.cached_property
    def _options_by_folded_name(self) -> dict[str, str]:
        members = [*self.unions["BuiltinOptions"], *self.unions["BuiltinOptions2"]]
        return {name.lower(): name for name in members}


def _check_subgraphs(root: Any, size: int) -> None:
    """Refuse subgraphs that share tables: a small file could hold a huge number of tensors that way."""
    subgraphs = (root.Subgraphs(index) for index in range(root.SubgraphsLength()))
    count = 0
    for subgraph in subgraphs:
        count += subgraph.TensorsLength() + subgraph.OperatorsLength()
        if 8 * count > size:  # each takes an offset in its vector and a table, 4 bytes each at least
            raise ModelError(
                f"damaged: its subgraphs have more tensors and operators than fit in {size} bytes"
            )


def _spans(buffers: Sequence[Any], header: Any) -> list[Span]:
    """The byte ranges of Buffer tables in the file that starts with `header`."""
    frame = parse_frame(header)
    behind = iter(frame.sizes or ()) if frame is not None else iter(())  # sizes of vectors behind the header
    spans = []
    for buffer in buffers:
        field = buffer._tab.Offset(DATA_SLOT)
        if buffer.Offset() > 1:  # 0 and 1 both mean: inline (the schema reserves 1 as a placeholder)
            spans.append(Span(buffer.Offset(), buffer.Size(), outside=True))
        elif not field:
            spans.append(Span(0, 0))
        elif (start := buffer._tab.Vector(field)) <= (len(header) if frame is None else frame.header):
            spans.append(Span(start, buffer._tab.VectorLen(field)))
        elif frame is not None and frame.sizes is None:
            spans.append(Span(start, buffer.Size()))
        elif (size := next(behind, None)) is not None:
            spans.append(Span(start, size))
        else:
            raise ModelError(f"a constant begins at byte {start}, behind the header of {len(header)} bytes")
    return spans


CIRCLE = Dialect("circle", b"CIR0", version=0)
TFLITE = Dialect("tflite", b"TFL3", version=3)
DIALECTS: dict[Format, Dialect] = {"circle": CIRCLE, "tflite": TFLITE}  # the FlatBuffers formats


def is_flatbuffer(data: memoryview) -> bool:
    """Return whether a file has the FlatBuffers identifier of a dialect.

    Args:
        data: The first bytes of the file.

    Returns:
        True for Circle and TFLite.
    """
    return bytes(data[4:8]) in {dialect.identifier for dialect in DIALECTS.values()}


def detect(data: memoryview, name: str) -> Dialect:
    """Return the dialect of a file by its FlatBuffers identifier.

    Args:
        data: The first bytes of the file.
        name: The name of the file, for the message.

    Returns:
        The dialect.

    Raises:
        ModelError: The file is empty or neither Circle nor TFLite, nor ONNX.
    """
    if len(data) == 0:
        raise ModelError(f"{name} is empty (did the command before it in the pipe fail?)")
    identifier = bytes(data[4:8])
    for dialect in DIALECTS.values():
        if identifier == dialect.identifier:
            return dialect
    kinds = {b"\x89PNG": "a PNG image", b"PK\x03\x04": "a zip archive"}
    start = bytes(data[:9])
    kind = next((kind for magic, kind in kinds.items() if start.startswith(magic)), "something else")
    if start.endswith(b"\0\0{"):  # the JSON header begins behind its length, 8 bytes
        kind = "perhaps weights in safetensors"
    raise ModelError(
        f"{name}: not a Circle, TFLite or ONNX model ({kind}: it starts with {bytes(data[:8])!r})"
    )
