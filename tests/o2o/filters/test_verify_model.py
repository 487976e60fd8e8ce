"""verify.model.py: each seeded damage has its code and its place, and what filters write has no errors."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import onnx_ir as ir
import pytest
from ai_edge_litert import schema_py_generated as schema

from o2o import formats
from o2o.contract import Role
from o2o.filters.verify_model import main
from o2o.lower.litert import lower_to_litert
from o2o.model import Model
from o2o.verifier.issue import CODES
from tests.o2o.fused_graphs import Form, attention
from tests.o2o.graphs import BOOL, FLOAT, INT32, SAMPLES, Graph, custom, linear, per_channel, sign, weights
from tests.o2o.language_model_graphs import language_model
from tests.o2o.window_graphs import window_model

Verify = Callable[..., tuple[int, str]]


@pytest.fixture
def verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Verify:
    def run(data: bytes | Model, *flags: str) -> tuple[int, str]:
        path = tmp_path / "model"
        path.write_bytes(data if isinstance(data, bytes) else formats.dumps(data))
        code = main([*flags, str(path)])
        captured = capsys.readouterr()
        assert captured.err == ""
        return code, captured.out

    return run


# ---- damages of the tables --------------------------------------------------------------------------


def packed(change: Callable[[Any], None]) -> bytes:
    """The file of a TFLite model whose tables were changed."""
    table = schema.ModelT.InitFromPackedBuf(formats.dumps(linear("tflite")))
    change(table)
    builder = flatbuffers.Builder(0)
    builder.Finish(table.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def missing_buffer(table: Any) -> None:
    table.subgraphs[0].tensors[0].buffer = 99


def missing_operand(table: Any) -> None:
    table.subgraphs[0].operators[1].inputs = np.int32([99, 0])


def missing_result(table: Any) -> None:
    table.subgraphs[0].operators[1].outputs = np.int32([-7])


def missing_input(table: Any) -> None:
    table.subgraphs[0].inputs = np.int32([77])


def missing_code(table: Any) -> None:
    table.subgraphs[0].operators[0].opcodeIndex = 5


def missing_subgraph(table: Any) -> None:
    table.signatureDefs[0].subgraphIndex = 3


def missing_signature_tensor(table: Any) -> None:
    table.signatureDefs[0].outputs[0].tensorIndex = 42


def metadata_without_buffer(table: Any) -> None:
    entry = schema.MetadataT()
    entry.name, entry.buffer = "min_runtime_version", 50
    table.metadata = [entry]


def dead_signature_tensor(table: Any) -> None:
    names = [tensor.name for tensor in table.subgraphs[0].tensors]
    table.signatureDefs[0].outputs[0].tensorIndex = names.index(b"weight")


def input_as_output(table: Any) -> None:
    table.signatureDefs[0].outputs[0].tensorIndex = table.subgraphs[0].inputs[0]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (missing_buffer, "error V001 main, x: no buffer 99 (there are "),
        (missing_operand, "error V001 main, operator 1: operand 0: no tensor 99 (there are "),
        (missing_result, "error V001 main, operator 1: result 0: no tensor -7 (there are "),
        (missing_input, "error V001 main: input 0: no tensor 77 (there are "),
        (missing_code, "error V001 main, operator 0: no operator code 5 (there are 2)"),
        (missing_subgraph, "error V001 signature main: no subgraph 3 (there are 1)"),
        (missing_signature_tensor, "error V001 signature main, output y: no tensor 42 (there are "),
        (metadata_without_buffer, "error V001 metadata min_runtime_version: no buffer 50 (there are "),
        (dead_signature_tensor, "error V004 y: signature main: weight is no output of its graph"),
        (input_as_output, "error V004 y: signature main: x is no output of its graph"),
    ],
)
def test_damaged_tables(change: Callable[[Any], None], line: str, verified: Verify) -> None:
    assert verified(packed(lambda _: None)) == (0, "model: no issues\n")
    code, text = verified(packed(change))
    assert code == 1
    assert any(one.startswith(line) for one in text.splitlines()), text


# ---- damages of the graph ---------------------------------------------------------------------------


def bytes_of_another_shape() -> bytes:
    def change(table: Any) -> None:
        by_name = {tensor.name: tensor for tensor in table.subgraphs[0].tensors}
        by_name[b"weight"].shape = np.int32([3, 5])

    return packed(change)


def same_names() -> bytes:
    def change(table: Any) -> None:
        for tensor in table.subgraphs[0].tensors[:2]:
            tensor.name = b"same"

    return packed(change)


def same_signatures() -> Model:
    model = linear()
    sign(model, model.graphs[0])
    return model


def incomplete_signature() -> Model:
    model = linear()
    model.signatures[0].outputs.pop("y")
    return model


def later_operator_first() -> bytes:
    def change(table: Any) -> None:
        table.subgraphs[0].operators.reverse()

    return packed(change)


def nothing_computes_an_operand() -> bytes:
    def change(table: Any) -> None:
        by_name = {tensor.name: tensor for tensor in table.subgraphs[0].tensors}
        by_name[b"one"].buffer = 0

    return packed(change)


def nothing_computes_an_output() -> bytes:
    def change(table: Any) -> None:
        del table.subgraphs[0].operators[1]

    return packed(change)


def dead_operator() -> Model:
    model = linear()
    model.graphs[0].outputs.pop()
    model.signatures[0].outputs.pop("z")
    return model


def unused_constant() -> Model:
    graph = Graph("main")
    graph.output(graph.op("ABS", [graph.input("x", [2])], [2], name="y"))
    graph.constant("unused", weights(3))
    return graph.model()


def damaged_contract() -> Model:
    model = linear()
    model.metadata = [("o2o.contract", b'{"version": 1}')]
    return model


def newer_contract() -> Model:
    model = linear()
    model.metadata = [("o2o.contract", b'{"version": 99, "signatures": {}}')]
    return model


def one(
    op: str, inputs: list[tuple[Any, ...]], shape: list[int], dtype: ir.DataType = FLOAT, **options: Any
) -> Model:
    """A model of one operator. An input is a shape and a dtype, or numbers."""
    graph = Graph("main")
    values = [
        graph.constant(f"c{k}", item[0]) if isinstance(item[0], np.ndarray) else graph.input(f"x{k}", *item)
        for k, item in enumerate(inputs)
    ]
    graph.output(graph.op(op, values, shape, dtype, "y", **options))
    return graph.model()


def ghost() -> Model:
    """A Circle model whose ADD reads a tensor that nothing computes."""
    model = linear()
    add = list(model.graphs[0])[1]
    add.replace_input_with(1, Graph("other").value("ghost", [1]))
    return model


def changed(model: Model, change: Callable[[ir.Node], None]) -> Model:
    change(next(iter(model.graphs[0])))
    return model


def drop_operand(node: ir.Node) -> None:
    node.replace_input_with(1, None)


def with_scales(scales: list[float], zero: int = 0, axis: int = 0) -> Model:
    model = SAMPLES["quantized"]()
    weight = model.graphs[0].initializers["weight"]
    weight.meta["fields"]["quantization"] = per_channel(scales)
    weight.meta["fields"]["quantization"].quantizedDimension = axis
    return model


def old_version() -> Model:
    model = one("BROADCAST_TO", [([1, 3],), (np.int32([2, 3]),)], [2, 3])
    model.format = "tflite"
    return model


def changed_role(index: int, role: Role) -> Model:
    model = language_model()
    model.graphs[1].inputs[index].meta["role"] = role
    return model


def windowed(window: int) -> Model:
    """ATTENTION over all 7 keys, whose contract has a window."""
    model = attention(Form(layout="BNTH"))
    for value in model.graphs[0].inputs[3:5]:
        value.meta["role"] = replace(value.meta["role"], window=window)
    sign(model, model.graphs[0])
    return model


def window_caches(window_row: bool = True, rows: int | None = None) -> Model:
    """Decode with window caches, without `window_row`, or with another number of rows in one of them."""
    model = window_model(rows=11, lengths=[1])
    for value in model.graphs[0].inputs:
        if value.name == "window_row" and not window_row:
            del value.meta["role"]
        if value.name == "past_value_0" and rows is not None:
            value.shape = ir.Shape((1, 1, rows, 8))
    return model


def retyped(name: str, shape: list[int], dtype: ir.DataType = FLOAT) -> Model:
    """Decode takes a cache of another shape, or ids of another dtype: only its declaration changes."""
    model = language_model()
    value = next(v for v in model.graphs[1].inputs if v.name == name)
    value.shape, value.dtype = ir.Shape(shape), dtype
    return model


def with_contract(change: Callable[[dict[str, Any]], None]) -> bytes:
    """A model whose contract was edited, with a filter of others: its tensors stay."""
    data = formats.dumps(lower_to_litert(language_model()))
    table = schema.ModelT.InitFromPackedBuf(data)
    (entry,) = (e for e in table.metadata if e.name == b"o2o.contract")
    contract = json.loads(bytes(table.buffers[entry.buffer].data))
    change(contract["signatures"])
    table.buffers[entry.buffer].data = np.frombuffer(json.dumps(contract).encode(), np.uint8)
    builder = flatbuffers.Builder(0)
    builder.Finish(table.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def stale_signature(signatures: dict[str, Any]) -> None:
    signatures["verify"] = signatures["decode"]


def stale_tensor(signatures: dict[str, Any]) -> None:
    signatures["decode"]["inputs"].append(
        {"name": "mask", "role": "tokens", "dtype": "int32", "shape": [1, 1]}
    )


def role_of_outputs(signatures: dict[str, Any]) -> None:
    signatures["decode"]["inputs"][0]["role"] = "logits"


def no_layer(signatures: dict[str, Any]) -> None:
    del signatures["decode"]["inputs"][3]["layer"]


def stale_shape(signatures: dict[str, Any]) -> None:
    signatures["decode"]["inputs"][0]["shape"] = [1, 9]


def other_vocabulary() -> Model:
    model = language_model()
    logits = next(v for v in model.graphs[1].outputs if v.meta["role"].kind == "logits")
    logits.shape = ir.Shape([*logits.shape.numpy()[:-1], 5])  # type: ignore[union-attr]
    return model


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (bytes_of_another_shape, "error V002 main, weight: 48 bytes for FLOAT [3, 5]"),
        (same_names, "warning V003 main, same: 2 tensors have this name"),
        (incomplete_signature, "warning V005 main, y: the signature main lacks this output of its graph"),
        (same_signatures, "error V006 2 signatures have the name 'main'"),
        (
            later_operator_first,
            "error V007 main, operator 0, z: ADD: operand 0, y, is computed by a later operator",
        ),
        (nothing_computes_an_operand, "error V008 main, operator 1, z: ADD: nothing computes operand 1, one"),
        (nothing_computes_an_output, "error V008 main, z: nothing computes this output"),
        (dead_operator, "warning V009 main, operator 1, z: ADD: no output depends on it (gc.py removes it)"),
        (unused_constant, "warning V010 main, unused: nothing uses this constant (gc.py removes it)"),
        (damaged_contract, "error V011 its metadata o2o.contract is damaged: it has no object `signatures`"),
        (newer_contract, "error V011 its o2o.contract has version 99"),
        (
            lambda: changed(linear(), drop_operand),
            "error V101 main, operator 0, y: FULLY_CONNECTED: operand 1",
        ),
        (
            lambda: one("ADD", [([2],)], [2]),
            "error V101 main, operator 0, y: ADD: 1 operands, and it takes 2",
        ),
        (
            lambda: one("ADD", [([2, 3],), ([3],)], [2, 4]),
            "error V102 main, operator 0, y: ADD: y is declared [2,4], and computed [2,3]",
        ),
        (
            lambda: one("TRANSPOSE", [([2, 3],), (np.int32([1, 0]),)], [2, 3]),
            "error V102 main, operator 0, y: TRANSPOSE: y is declared [2,3], and computed [3,2]",
        ),
        (
            lambda: one("ADD", [([2, 3],), ([4],)], [2, 3]),
            "error V103 main, operator 0, y: ADD: [2,3] and [4] do not broadcast",
        ),
        (
            lambda: one("FULLY_CONNECTED", [([2, 3],), (weights(5, 4),)], [2, 5], keepNumDims=1),
            "error V103 main, operator 0, y: FULLY_CONNECTED: [2,3] times weights of 4 columns",
        ),
        (
            lambda: one("ADD", [([2],), ([2], INT32)], [2]),
            "error V104 main, operator 0, y: ADD: operands of float32 and int32",
        ),
        (
            lambda: one("LESS", [([2],), ([2],)], [2], FLOAT),
            "error V104 main, operator 0, y: LESS: y is float32, and the operator computes bool",
        ),
        (
            lambda: one("SELECT_V2", [([2],), ([2],), ([2],)], [2]),
            "error V104 main, operator 0, y: SELECT_V2: the condition is float32, not bool",
        ),
        (
            lambda: one("LOGICAL_AND", [([2],), ([2],)], [2], BOOL),
            "error V104 main, operator 0, y: LOGICAL_AND: operands that are not bool",
        ),
        (
            lambda: one("GATHER", [([2, 3],), ([2], FLOAT)], [2, 3]),
            "error V104 main, operator 0, y: GATHER: operand 1 is float32, not an integer",
        ),
        (
            lambda: one("FULLY_CONNECTED", [([2, 3],), (np.ones((5, 3), np.int8),)], [2, 5], keepNumDims=1),
            "error V104 main, operator 0, y: FULLY_CONNECTED: c1 is int8 without scales, and x is float32",
        ),
        (old_version, "warning V105 main, operator 0, y: BROADCAST_TO: version 1, and its operands need 2"),
        (lambda: with_scales([1, 2]), "error V106 main, weight: 2 scales for 3 rows along axis 0"),
        (lambda: with_scales([1, 2, 3], axis=5), "error V106 main, weight: scales along axis 5 of [3,4]"),
        (lambda: with_scales([1, float("nan"), 3]), "error V106 main, weight: the scale nan"),
        (lambda: with_scales([1, -2, 3]), "error V106 main, weight: the scale -2"),
        (
            lambda: with_contract(role_of_outputs),
            "error V201 decode, input_ids: logits: a role of outputs on an input",
        ),
        (
            lambda: retyped("input_ids", [1, 1], FLOAT),
            "error V201 decode, input_ids: tokens: float32, not an integer",
        ),
        (
            lambda: retyped("input_ids", [1], ir.DataType.INT64),
            "error V201 decode, input_ids: tokens: [1], not [B, T]",
        ),
        (
            lambda: retyped("past_key_0", [1, 48]),
            "error V201 decode, past_key_0: key_cache: [1, 48], not 4 axes",
        ),
        (
            lambda: retyped("past_key_0", [1, 2, 9, 3]),
            "error V202 decode, past_value_0: its capacity is 8, and 9 in past_key_0",
        ),
        (
            lambda: retyped("past_key_0", [1, 4, 8, 3]),
            "error V202 decode, past_value_0: K is 2, and 4 in past_key_0",
        ),
        (
            lambda: window_caches(window_row=False),
            "error V202 decode, past_value_0: it is a window cache, and there is no input window_row",
        ),
        (
            lambda: window_caches(rows=4),
            "error V202 decode, past_value_0: it has 4 rows, and a run of 1 with a window of 5 needs 5",
        ),
        (
            lambda: window_caches(rows=9),
            "error V202 decode, past_value_0: it has 9 rows, and past_key_0 11",
        ),
        (
            lambda: changed_role(3, Role("key_cache", 0, "BNTH")),
            "error V203 decode, past_value_0: key_cache of layer 0 is past_key_0 too",
        ),
        (
            lambda: with_contract(no_layer),
            "error V203 decode, past_value_0: value_cache without",
        ),
        (
            lambda: changed_role(3, Role("value_cache", 1, "BNTH")),
            "warning V207 decode: layer 0 has a key_cache, and no value_cache",
        ),
        (
            lambda: with_contract(stale_signature),
            "warning V204 the contract has the signature verify, which does not exist",
        ),
        (
            lambda: with_contract(stale_tensor),
            "warning V204 decode: the contract has the input mask, which does not exist",
        ),
        (
            lambda: with_contract(stale_shape),
            "warning V205 decode, input_ids: its shape is [1, 1], and [1, 9] in the contract",
        ),
        (
            lambda: changed_role(3, Role("value_cache", 0, "BNTH", window=3)),
            "error V202 decode, past_value_0: window is 3, and 0 in past_key_0",
        ),
        (
            lambda: windowed(6),
            "error V208 decode, past_key_0: a query sees 7 of 7 keys, and 6 by the contract",
        ),
        (other_vocabulary, "error V206 decode, logits: V is 5, and 11 in logits of prefill_4"),
    ],
)
def test_each_damage_has_its_code(damage: Callable[[], bytes | Model], line: str, verified: Verify) -> None:
    code, text = verified(damage())
    assert any(one.startswith(line) for one in text.splitlines()), text
    severity, number = line.split()[:2]
    assert CODES[number][0] == severity
    assert code == (" error" in text.splitlines()[-1])
    assert verified(damage(), "--warnings-as-errors")[0] == 1
    code, data = verified(damage(), "--json")
    assert number in {issue["code"] for issue in json.loads(data)["issues"]}


def test_a_window_that_hides_no_key_needs_no_mask(verified: Verify) -> None:
    assert "V208" in verified(windowed(6))[1]
    assert "V208" not in verified(windowed(7))[1]


@pytest.mark.parametrize(
    ("model", "engine", "line"),
    [
        (custom, "litert", "error V301 main, operator 0, a: MyOp: LiteRT has no such custom operator"),
        (
            old_version,
            "litert",
            "error V302 main, operator 0, y: BROADCAST_TO: version 1, and LiteRT has 2 on",
        ),
        (linear, "onert", "error V311 "),
        (linear, "onnx", "error V321 "),
    ],
)
def test_what_engines_lack(model: Callable[[], Model], engine: str, line: str, verified: Verify) -> None:
    code, text = verified(model(), "--engine", engine)
    assert code == 1
    assert any(one.startswith(line) for one in text.splitlines()), text
    assert verified(model())[0] == 0


def test_engines_that_run_it(verified: Verify) -> None:
    flags = [flag for engine in ("litert", "onert") for flag in ("--engine", engine)]
    assert verified(language_model(), *flags) == (0, "model: no issues\n")
    assert verified(attention(Form(T=1, layout="BNTH")), "--engine", "litert")[0] == 0


@pytest.mark.parametrize("sample", sorted(SAMPLES))
def test_samples_have_no_errors(sample: str, verified: Verify) -> None:
    code, text = verified(SAMPLES[sample]())
    assert code == 0, text


def test_errors_come_first_and_warnings_are_cut(verified: Verify) -> None:
    model = one("ADD", [([2, 3],), ([4],)], [2, 3])
    graph = Graph("main")
    graph.ir = model.graphs[0]
    for k in range(20):
        graph.constant(f"unused{k}", weights(3))
    lines = verified(model)[1].splitlines()
    assert lines[0].startswith("error V103 ")
    assert lines[-2:] == ["... and 8 more V010 (--json shows all)", "model: 1 error, 20 warnings"]
    assert len(lines) == 1 + 12 + 2
    assert len(json.loads(verified(model, "--json")[1])["issues"]) == 21


def test_all_codes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--codes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(CODES)


@pytest.mark.skipif(importlib.util.find_spec("tico") is None, reason="TICO is not installed")
def test_tico_is_a_second_opinion(
    verified: Verify, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ghost()
    sign(model, model.graphs[0])
    code, text = verified(model, "--tico")
    assert code == 1
    assert "warning V402 DUPLICATE_SIGNATURE_KEY: " in text
    assert "error V401 " in text
    formats.save(linear("tflite"), tmp_path / "x.tflite")
    assert main(["--tico", str(tmp_path / "x.tflite")]) == 1
    assert "TICO reads Circle, not tflite: leave out --tico" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("size", "issue"),
    [(12, None), (8, "error V002 "), (None, "warning V012 ")],
)
def test_external_data(
    size: int | None, issue: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx = pytest.importorskip("onnx")
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[3] x) => (float[3] y) { y = Add (x, w) }'
    proto = onnx.parser.parse_model(text)
    tensor = proto.graph.initializer.add(name="w", data_type=1, dims=[3], data_location=1)
    tensor.external_data.add(key="location", value="w.bin")
    (tmp_path / "in.onnx").write_bytes(proto.SerializeToString())
    if size is not None:
        (tmp_path / "w.bin").write_bytes(b"x" * size)
    main([str(tmp_path / "in.onnx")])
    output = capsys.readouterr().out
    assert "no issues" in output if issue is None else issue in output
