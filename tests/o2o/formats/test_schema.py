"""The two schemas behind one interface: tables, enums, options, identifiers."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from o2o.errors import ModelError
from o2o.formats.schema import CIRCLE, DIALECTS, TFLITE, Dialect, detect

BOTH = pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)


@BOTH
def test_a_file_is_recognized_by_its_identifier(dialect: Dialect) -> None:
    assert detect(memoryview(bytes(4) + dialect.identifier + bytes(8)), "file") is dialect


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "file is empty"),
        (b"\x89PNG\r\n\x1a\n", "a PNG image"),
        (b"PK\x03\x04" + bytes(8), "a zip archive"),
        (bytes([16, 0, 0, 0, 0, 0, 0, 0]) + b"{", "perhaps weights in safetensors"),
        (b"Once upon a time", "something else"),
    ],
)
def test_other_files(data: bytes, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        detect(memoryview(data), "file")


@BOTH
def test_tables_and_enums(dialect: Dialect) -> None:
    assert dialect.has_table("AddOptions")
    assert type(dialect.table("AddOptions")()).__name__ == "AddOptionsT"
    assert not dialect.has_table("NoOptions")
    with pytest.raises(ModelError, match=f"{dialect.name} has no table NoOptions"):
        dialect.table("NoOptions")
    assert dialect.enum("BuiltinOperator")["ADD"] == 0
    assert dialect.dtypes[dialect.dtype_codes[ir.DataType.INT4]] == ir.DataType.INT4


@BOTH
def test_options_of_operators(dialect: Dialect) -> None:
    assert dialect.options_table("FULLY_CONNECTED") == "FullyConnectedOptions"
    assert dialect.options_table("MEAN") == "ReducerOptions"
    assert dialect.options_table("CUSTOM") is None


def test_circle_has_more_operators() -> None:
    assert set(TFLITE.operator_codes) - set(CIRCLE.operator_codes) == set()
    assert {"ATTENTION", "RMS_NORM", "ROPE"} <= set(CIRCLE.operator_codes) - set(TFLITE.operator_codes)


def test_one_name_for_a_field() -> None:
    assert TFLITE.ir_field("BatchMatMulOptions", "adjX") == "adjointLhs"
    assert CIRCLE.ir_field("BatchMatMulOptions", "adjointLhs") == "adjointLhs"
