"""Reading and writing loses nothing: every field of every table, in both formats, from any writer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from o2o import formats
from o2o.formats.schema import DIALECTS, SUBGRAPH_FIELDS, Dialect
from o2o.model import Format, Model
from tests.o2o.formats.trees import (
    canonical,
    field_types,
    filled,
    operators_with_options,
    pack,
    repacked,
    unpack,
)
from tests.o2o.graphs import SAMPLES, assert_same_results, feeds, float_models, run

FORMATS: tuple[Format, Format] = ("circle", "tflite")


def again(data: bytes) -> bytes:
    return formats.dumps(formats.loads(data))


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_samples_survive(name: str) -> None:
    data = formats.dumps(SAMPLES[name]())
    foreign = repacked(data)
    assert canonical(foreign) == canonical(data)
    assert canonical(again(foreign)) == canonical(foreign)
    assert again(foreign) == again(again(foreign)), "our own output passes byte for byte"
    assert again(data) == data


@given(float_models())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_random_graphs_survive(model: Model) -> None:
    data = formats.dumps(model)
    foreign = repacked(data)
    assert again(data) == data
    assert canonical(again(foreign)) == canonical(foreign)
    given = feeds(model)
    assert_same_results(run(model, given), run(formats.loads(again(foreign)), given))


def a_file(dialect: Dialect, operators: list[Any], codes: list[Any]) -> Any:
    """A model of three subgraphs, of which the first holds `operators` over the same two tensors."""
    root = filled(dialect, "Model")
    root.subgraphs = []
    for number in range(3):
        graph = filled(dialect, "SubGraph")
        graph.tensors = [plain_tensor(dialect, f"t{number}{k}") for k in range(2 + len(operators))]
        graph.inputs, graph.outputs, graph.operators = [0, 1], [1], []
        root.subgraphs.append(graph)
    for index, operator in enumerate(operators):
        operator.inputs, operator.outputs, operator.intermediates = [0, -1, 1], [2 + index], None
        operator.opcodeIndex = index
    root.subgraphs[0].operators = operators
    root.operatorCodes = codes
    root.buffers = [filled(dialect, "Buffer") for _ in range(3)]
    for number, buffer in enumerate(root.buffers):
        buffer.offset = buffer.size = 0
        buffer.data = list(range(number * 4))
    root.metadata = []
    root.metadataBuffer = [1, 2]
    root.signatureDefs = []
    return root


def plain_tensor(dialect: Dialect, name: str) -> Any:
    tensor = dialect.table("Tensor")()
    tensor.name, tensor.shape = name, [1]
    return tensor


def code_of(dialect: Dialect, operator: str, version: int = 1) -> Any:
    code = dialect.table("OperatorCode")()
    code.builtinCode = dialect.operator_codes[operator]
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)
    code.version = version
    return code


@pytest.mark.parametrize("format_", FORMATS)
def test_every_option_of_every_operator_survives(format_: Format) -> None:
    dialect = DIALECTS[format_]
    operators, codes = [], []
    for version, (name, table) in enumerate(operators_with_options(dialect), 1):
        operator = filled_operator(dialect)
        if table is not None:
            union = "builtinOptions" if table in dialect.unions["BuiltinOptions"] else "builtinOptions2"
            options = filled(dialect, table)
            for field, kind in field_types(type(options)).items():
                if (table, field) in SUBGRAPH_FIELDS:
                    setattr(options, field, [2, 1] if kind == "[int]" else 2)
            setattr(operator, union, options)
            setattr(operator, f"{union}Type", dialect.unions[f"B{union[1:]}"][table])
        operators.append(operator)
        codes.append(code_of(dialect, name, version))
    data = pack(a_file(dialect, operators, codes), dialect)
    assert canonical(again(data)) == canonical(data)
    used = {type(op.builtinOptions or op.builtinOptions2).__name__[:-1] for op in operators}
    assert used - {"NoneTyp"} == {*dialect.unions["BuiltinOptions"], *dialect.unions["BuiltinOptions2"]} - {
        "NONE"
    }


def filled_operator(dialect: Dialect) -> Any:
    operator = dialect.table("Operator")()
    operator.customOptions = [9, 8, 7]
    operator.mutatingVariableInputs = [True, False]
    operator.debugMetadataIndex = 5
    return operator


@pytest.mark.parametrize("format_", FORMATS)
def test_every_field_of_a_tensor_survives(format_: Format) -> None:
    dialect = DIALECTS[format_]
    details = [name for name in dialect.unions["QuantizationDetails"] if name != "NONE"]
    vectors = [name for name in dialect.unions["SparseIndexVector"] if name != "NONE"]
    root = a_file(dialect, [], [])
    root.subgraphs[0].tensors = [
        filled(dialect, "Tensor", [detail, vector]) for detail in details for vector in vectors
    ]
    root.subgraphs[1].tensors = [filled(dialect, "Tensor") for _ in dialect.enum("TensorType")]
    for number, tensor in zip(dialect.enum("TensorType").values(), root.subgraphs[1].tensors, strict=True):
        tensor.type = number
    for graph in root.subgraphs[:2]:
        graph.inputs, graph.outputs = [0, 1, 2], [1]
        for index, tensor in enumerate(graph.tensors):
            tensor.name = f"tensor {index}"
    data = pack(root, dialect)
    assert canonical(again(data)) == canonical(data)


@pytest.mark.parametrize("format_", FORMATS)
def test_signatures_and_metadata_survive(format_: Format) -> None:
    dialect = DIALECTS[format_]
    root = a_file(dialect, [], [])
    signature = filled(dialect, "SignatureDef")
    signature.subgraphIndex = 2
    signature.inputs[0].tensorIndex, signature.outputs[0].tensorIndex = 0, 1
    metadata = filled(dialect, "Metadata")
    metadata.buffer = 2
    root.signatureDefs, root.metadata = [signature], [metadata]
    data = pack(root, dialect)
    assert canonical(again(data)) == canonical(data)


def test_names_missing_and_double_survive() -> None:
    data = formats.dumps(SAMPLES["odd_names"]())
    tensors = unpack(again(data)).subgraphs[0].tensors
    assert [tensor.name for tensor in tensors] == [b"same", b"same", None, b""]


def test_shared_buffers_stay_shared() -> None:
    table = unpack(again(repacked(formats.dumps(SAMPLES["shared_bytes"]()))))
    numbers = [t.buffer for graph in table.subgraphs for t in graph.tensors if t.name in (b"weight", b"flat")]
    assert len(numbers) == 2
    assert len(set(numbers)) == 1


def test_operator_codes_of_files_from_before_2020() -> None:
    """They have only the field of a byte, deprecatedBuiltinCode."""
    data = formats.dumps(SAMPLES["linear"]())
    table = unpack(data)
    for code in table.operatorCodes:
        code.builtinCode = 0
    old = pack(table, DIALECTS["circle"])
    assert [node.op_type for node in formats.loads(old).graphs[0]] == ["FULLY_CONNECTED", "ADD"]
    assert again(old) == again(data)


def test_custom_options_behind_the_tables() -> None:
    """largeCustomOptionsOffset and -Size: they come back inside."""
    table = unpack(formats.dumps(SAMPLES["custom"]()))
    operator = table.subgraphs[0].operators[0]
    operator.customOptions = None
    operator.largeCustomOptionsOffset, operator.largeCustomOptionsSize = 1, 5
    size = len(pack(table, DIALECTS["circle"]))
    operator.largeCustomOptionsOffset = size
    data = pack(table, DIALECTS["circle"])
    assert len(data) == size
    back = unpack(again(data + b"hello"))
    assert back.subgraphs[0].operators[0].customOptions.tobytes() == b"hello"
    assert back.subgraphs[0].operators[0].largeCustomOptionsSize == 0


@pytest.mark.parametrize("name", sorted(SAMPLES))
@pytest.mark.parametrize("format_", FORMATS)
def test_another_format_and_back(name: str, format_: Format) -> None:
    """What both formats can hold goes through the other one and comes back the same."""
    model = SAMPLES[name]()
    data = formats.dumps(model)
    there = formats.loads(data)
    there.format = format_
    back = formats.loads(formats.dumps(there))
    back.format = model.format
    back.fields.pop("version", None)
    assert canonical(formats.dumps(back)) == canonical(data)


def test_values_of_every_type_read_as_numbers() -> None:
    graph = formats.loads(formats.dumps(SAMPLES["small_types"]())).graphs[0]
    for name, value in graph.initializers.items():
        assert value.const_value is not None
        assert value.const_value.dtype == value.dtype, name
        assert value.const_value.numpy().shape == (3,), name
    assert list(np.asarray(graph.initializers["INT4"].const_value.numpy(), np.int8)) == [1, 0, 1]  # type: ignore[union-attr]
