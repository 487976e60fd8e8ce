"""What is not a whole model is refused in one line, whatever it is; and reading copies nothing."""

from __future__ import annotations

import contextlib

import flatbuffers
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from o2o import formats
from o2o.errors import ModelError
from o2o.formats.fingerprint import fingerprint
from o2o.formats.schema import DIALECTS
from o2o.formats.tensors import constant_array
from o2o.model import CUSTOM_DOMAIN
from tests import schemas
from tests.o2o.formats.trees import pack, unpack
from tests.o2o.graphs import SAMPLES, Graph, decoder, linear, run

DATA = {name: formats.dumps(SAMPLES[name]()) for name in ("decoder", "conditional", "quantized", "custom")}


def refusal(data: bytes) -> str:
    with pytest.raises(ModelError) as caught:
        formats.loads(data)
    return str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "<bytes> is empty (did the command before it in the pipe fail?)"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "not a Circle, TFLite or ONNX model (a PNG image"),
        (b"PK\x03\x04" + bytes(40), "not a Circle, TFLite or ONNX model (a zip archive"),
        (b"\x08\x08" + bytes(6) + b'{"a": {', "(perhaps weights in safetensors"),
        (b"\x08\x0a\x12\x05", "truncated or damaged"),
        (b"hello world", "not a Circle, TFLite or ONNX model (something else"),
        (b"\x1c\x00\x00\x00CIR0", "truncated or damaged circle file of 8 bytes"),
        (b"\x1c\x00\x00\x00TFL3", "truncated or damaged tflite file of 8 bytes"),
    ],
)
def test_what_is_no_model(data: bytes, message: str) -> None:
    assert message in refusal(data)


@pytest.mark.parametrize("name", sorted(DATA))
def test_a_file_cut_anywhere_in_its_tables(name: str) -> None:
    data = DATA[name]
    last = len(data) - 8  # FlatBuffers does not notice when the very last string is shorter than it says
    for length in [*range(0, min(last, 2000), 13), last - 1]:
        refusal(data[:length])


def test_a_constant_that_ends_beyond_the_file() -> None:
    table = unpack(DATA["decoder"])
    table.buffers[1].data = None
    table.buffers[1].offset, table.buffers[1].size = 100, 1_000_000
    message = refusal(pack(table, DIALECTS["circle"]))
    assert "truncated: a constant ends at byte 1000100 of " in message


@given(st.sampled_from(sorted(DATA)), st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_damage_is_refused_or_harmless(name: str, data: st.DataObject) -> None:
    """Any bytes may differ: there is a model or a ModelError, never another exception."""
    damaged = bytearray(DATA[name][:4000])
    damaged += DATA[name][4000:]
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(8, min(len(damaged), 4000) - 1))
        damaged[position] = data.draw(st.sampled_from([0, 1, 2, 4, 0x7F, 0x80, 0xFF]))
    with contextlib.suppress(ModelError), schemas.unchecked():
        formats.dumps(formats.loads(bytes(damaged)))


def test_no_subgraph() -> None:
    table = unpack(DATA["custom"])
    table.subgraphs = []
    assert refusal(pack(table, DIALECTS["circle"])).endswith("it holds no subgraph")


@pytest.mark.parametrize("field", ["inputs", "outputs"])
def test_numbers_that_no_tensor_has(field: str) -> None:
    for number in (-1, 99, -7):
        table = unpack(DATA["custom"])
        setattr(table.subgraphs[0], field, [number])
        assert "truncated or damaged" in refusal(pack(table, DIALECTS["circle"]))


def test_an_unknown_operator() -> None:
    table = unpack(DATA["custom"])
    table.operatorCodes[0].builtinCode = 9999
    assert refusal(pack(table, DIALECTS["circle"])).endswith(
        "operator code 9999 is unknown to this version of the circle schema"
    )


def test_damaged_metadata_of_ours() -> None:
    for name, data, message in (
        ("o2o.contract", b"{", "its metadata o2o.contract is damaged"),
        ("o2o.contract", b'{"version": 99}', "has version 99; this o2o knows 1: update o2o"),
        ("o2o.history", b"nope", "its metadata o2o.history is damaged"),
        ("o2o.history", b'{"a": 1}', "not a list of objects"),
    ):
        model = linear()
        model.metadata = [(name, data)]
        assert message in refusal(formats.dumps(model))


def test_the_fingerprint_is_that_of_the_graph() -> None:
    model = decoder()
    first = fingerprint(formats.loads(formats.dumps(model)))
    head = model.graphs[0].initializers["head"].const_value
    head.raw[0, 0] += 1  # type: ignore[union-attr]
    assert fingerprint(formats.loads(formats.dumps(model))) == first, "other weights, the same graph"
    model.graphs[0].inputs[0].name = "tokens"
    assert fingerprint(formats.loads(formats.dumps(model))) != first


def test_constants_are_views() -> None:
    data = formats.dumps(decoder())
    whole = np.frombuffer(data, np.uint8)
    head = formats.loads(data).graphs[0].initializers["head"]
    array = constant_array(head)
    assert array is not None
    assert np.shares_memory(array, whole)


def test_custom_operators_keep_their_codes_apart() -> None:
    nodes = list(formats.loads(DATA["custom"]).graphs[0])
    assert [(node.domain, node.op_type) for node in nodes] == [
        (CUSTOM_DOMAIN, "MyOp"),
        (CUSTOM_DOMAIN, "YourOp"),
    ]
    assert [node.version for node in nodes] == [1, 4]
    assert nodes[0].inputs[1] is None
    assert nodes[1].meta["intermediates"][0].name == "scratch"


def test_a_signature_of_a_value_inside_is_refused() -> None:
    model = decoder()
    hidden = next(value for value in model.graphs[0][0].outputs)
    data = formats.dumps(model)
    model.signatures[0].outputs["hidden"] = hidden
    with pytest.raises(ModelError, match=r"damaged: signature 'prefill' names .* as 'hidden', which"):
        formats.loads(formats.dumps(model))
    assert formats.loads(data)


def test_subgraphs_that_share_a_table_are_refused_at_once() -> None:
    """8 KB that would be a million tensors: FlatBuffers may refer to one table from many places."""
    count = 1000
    builder = flatbuffers.Builder(0)
    tensor = table(builder, {})
    graph = table(builder, {0: vector(builder, [tensor] * count)})
    root = table(builder, {2: vector(builder, [graph] * count), 4: vector(builder, [table(builder, {})])})
    builder.Finish(root, b"CIR0")
    assert len(builder.Output()) < 10_000
    assert "damaged: its subgraphs have more tensors and operators than fit" in refusal(
        bytes(builder.Output())
    )


def table(builder: flatbuffers.Builder, fields: dict[int, int]) -> int:
    """A table whose fields are offsets, by number."""
    builder.StartObject(8)
    for number, offset in fields.items():
        builder.PrependUOffsetTRelativeSlot(number, offset, 0)
    return int(builder.EndObject())


def vector(builder: flatbuffers.Builder, offsets: list[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in offsets:
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


def test_a_tensor_that_operators_write_more_than_once() -> None:
    """In the IR a value is computed once. Here an operator writes an input, and another its own operand."""
    graph = Graph("main")
    x, state = graph.input("x", [2, 3]), graph.input("state", [2, 3])
    negated = graph.op("NEG", [x], [2, 3], name="negated")
    graph.output(graph.op("ADD", [negated, state], [2, 3], name="sum"))
    table = unpack(formats.dumps(graph.model(format="tflite")))
    subgraph = table.subgraphs[0]
    index = {tensor.name: number for number, tensor in enumerate(subgraph.tensors)}
    for operator in subgraph.operators:  # x = -x; state = x + state
        operator.inputs = [index[b"x"] if i == index[b"negated"] else i for i in operator.inputs]
    subgraph.operators[0].outputs = [index[b"x"]]
    subgraph.operators[1].outputs = [index[b"state"]]
    subgraph.outputs = [index[b"state"]]
    table.signatureDefs[0].outputs[0].tensorIndex = index[b"state"]
    model = formats.loads(pack(table, DIALECTS["tflite"]))
    (signature,) = model.signatures
    assert [value.name for value in signature.inputs.values()] == ["x", "state"]
    assert signature.outputs["sum"] is model.graphs[0].outputs[0]
    x_array, state_array = np.float32([[1, 2, 3], [4, 5, 6]]), np.full((2, 3), 10, np.float32)
    results = run(model, {"x": x_array, "state": state_array})
    np.testing.assert_array_equal(next(iter(results.values())), state_array - x_array)
    written = formats.dumps(model)
    assert formats.dumps(formats.loads(written)) == written
