"""The two FlatBuffers dialects, Circle and TFLite, as tables of names over their generated schemas.

Circle is TFLite's superset with a few negative operator codes. Their generated Python differs in packaging
(one module a table, one module for all), in a handful of enum values and in one pair of field names; that
is all this module knows. Schemas: `circle_schema` (Samsung ONE's res/CircleSchema) and
`ai_edge_litert.schema_py_generated` (LiteRT's tflite/converter/schema).
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

# Operators whose options table is not called after them. Most that have no entry here have none at all.
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

# Fields that are subgraph numbers in the file and graphs in the IR.
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

# Fields of the quantization details that are tensor numbers in the file and values in the IR.
QUANTIZATION_CONSTANTS = ("scales", "zeroPoints")

# One IR name for a field that the dialects spell differently: (table, TFLite's name) -> Circle's name.
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


DATA_SLOT, OFFSET_SLOT, SIZE_SLOT = 4, 6, 8  # of the Buffer table, in both dialects


@dataclass(frozen=True)
class Span:
    """A run of bytes in the file; `outside`: found by Buffer.offset, beyond what FlatBuffers can address."""

    start: int
    size: int
    outside: bool = False


@dataclass(frozen=True)
class Dialect:
    """One of the two file formats: its identifier, and lookups into its generated schema."""

    name: Format
    identifier: bytes
    version: int  # of the Model table: what the format's own runtime asks for

    def table(self, name: str) -> type[Any]:
        """The generated object-API class of table `name` (`AddOptions` -> `AddOptionsT`)."""
        namespace = self._module(name)
        found: type[Any] | None = getattr(namespace, f"{name}T", None)
        if found is None:
            raise ModelError(f"{self.name} has no table {name}")
        return found

    def has_table(self, name: str) -> bool:
        return getattr(self._module(name), f"{name}T", None) is not None

    def enum(self, name: str) -> dict[str, int]:
        """The values of enum (or union type) `name` by their names."""
        found = getattr(self._module(name), name)
        return {key: value for key, value in vars(found).items() if isinstance(value, int)}

    def _module(self, name: str) -> Any:
        if self.name == "circle":
            from circle_schema import circle

            return getattr(circle, name, None)
        from ai_edge_litert import schema_py_generated

        return schema_py_generated

    def unpack_head(self, data: Any) -> tuple[Any, list[Span]]:
        """`data`, at least the head of a file, as the object-API `ModelT` without its buffers, and the places
        of these. Vectors of numbers stay views into `data`."""
        root = self._without_buffers.GetRootAs(data, 0)
        table = self.table("Model").InitFromObj(root)
        return table, _spans([root.Buffers(index) for index in range(root.BuffersLength())], data)

    @functools.cached_property
    def _without_buffers(self) -> Any:
        """The generated accessor of the Model table, keeping its buffers to itself when it is unpacked."""
        model = self._module("Model").Model

        class WithoutBuffers(model):  # type: ignore[misc, valid-type]
            @classmethod
            def GetRootAs(cls, data: Any, offset: int = 0) -> Any:
                found = cls()
                found.Init(data, struct.unpack_from("<I", data, offset)[0] + offset)
                return found

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
        """Union name -> member table -> type number."""
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
        """The name of the options table that goes with builtin `operator`, or None if it has none."""
        if operator in _OPTIONS_BY_OPERATOR:
            return _OPTIONS_BY_OPERATOR[operator]
        return self._options_by_folded_name.get(operator.replace("_", "").lower() + "options")

    @functools.cached_property
    def _options_by_folded_name(self) -> dict[str, str]:
        members = [*self.unions["BuiltinOptions"], *self.unions["BuiltinOptions2"]]
        return {name.lower(): name for name in members}


def _spans(buffers: Sequence[Any], head: Any) -> list[Span]:
    """The byte ranges of Buffer tables in the file that starts with `head`."""
    frame = parse_frame(head)
    behind = iter(frame.sizes or ()) if frame is not None else iter(())  # sizes of vectors behind the head
    spans = []
    for buffer in buffers:
        field = buffer._tab.Offset(DATA_SLOT)
        if buffer.Offset() > 1:  # 0 and 1 both mean: inline (the schema reserves 1 as a placeholder)
            spans.append(Span(buffer.Offset(), buffer.Size(), outside=True))
        elif not field:
            spans.append(Span(0, 0))
        elif (start := buffer._tab.Vector(field)) <= (len(head) if frame is None else frame.head):
            spans.append(Span(start, buffer._tab.VectorLen(field)))
        elif frame is not None and frame.sizes is None:
            spans.append(Span(start, buffer.Size()))
        elif (size := next(behind, None)) is not None:
            spans.append(Span(start, size))
        else:
            raise ModelError(f"a constant begins at byte {start}, behind the head of {len(head)} bytes")
    return spans


CIRCLE = Dialect("circle", b"CIR0", version=0)
TFLITE = Dialect("tflite", b"TFL3", version=3)
DIALECTS: dict[Format, Dialect] = {"circle": CIRCLE, "tflite": TFLITE}


def detect(data: memoryview, name: str) -> Dialect:
    """The dialect of the file that starts with `data`. Raises ModelError for anything else."""
    if len(data) == 0:
        raise ModelError(f"{name}: is empty (did the command before it in the pipe fail?)")
    identifier = bytes(data[4:8])
    for dialect in DIALECTS.values():
        if identifier == dialect.identifier:
            return dialect
    looks = {b"\x89PNG": "a PNG image", b"PK\x03\x04": "a zip archive", b"\x08": "perhaps an ONNX model"}
    start = bytes(data[:9])
    kind = next((what for magic, what in looks.items() if start.startswith(magic)), "something else")
    if start.endswith(b"\0\0{"):  # behind the size of its header
        kind = "perhaps weights in safetensors"
    raise ModelError(
        f"{name}: neither a Circle nor a TFLite model ({kind}: it starts with {bytes(data[:8])!r})"
    )
