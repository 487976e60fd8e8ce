"""raise.circle: TFLite or ONNX in, Circle out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from o2o import filters, formats
from o2o.contract import Kind, Role, role_of
from o2o.filters.fuse_attention import FuseAttention
from o2o.filters.fuse_rms_norm import FuseRmsNorm
from o2o.filters.fuse_rope import FuseRope
from o2o.filters.sign_contract import SignContract
from o2o.formats.onnx_reader import decode
from o2o.lower.litert import lower_to_litert
from o2o.model import Model
from tests.o2o.filters.conftest import Command
from tests.o2o.fused_graphs import Form, attention
from tests.o2o.graphs import SAMPLES, Graph, decoder, operators, weights
from tests.o2o.onnx_graphs import static_decoder


@pytest.mark.parametrize("sample", sorted(SAMPLES))
def test_there_and_back(command: Command, sample: str) -> None:
    """What was Circle, or TFLite, is again what it was, but for the history and what lowering tidies."""
    model = lower_to_litert(SAMPLES[sample]())
    before = formats.dumps(model)
    raised = command(formats.loads(before))
    assert raised.format == "circle"
    raised.history = []
    assert formats.dumps(lower_to_litert(raised)) == before


def test_the_same_numbers(command: Command) -> None:
    command(lower_to_litert(attention(Form(T=3, layout="BTNH"))), "--check")
    assert "the same, within 0.0e+00" in command.said


def test_what_is_raised_can_be_fused(command: Command) -> None:
    graph = Graph("main")
    x = graph.input("x", [1, 3, 6])
    graph.output(graph.op("RMS_NORM", [x, graph.constant("w", weights(6))], [1, 3, 6], name="y", epsilon=0.5))
    raised = command(lower_to_litert(graph.model()))
    FuseRmsNorm().apply(raised, _Quiet())
    assert operators(raised)["RMS_NORM"] == 1


class _Quiet:
    explain = False


def test_circle_passes_as_it_is(command: Command) -> None:
    before = formats.dumps(decoder())
    assert formats.dumps(command(formats.loads(before))) == before
    assert command.said == "raise.circle.py: the model is Circle already and passes unchanged\n"


def test_a_tensor_type_that_circle_lacks(command: Command) -> None:
    graph = Graph("main")
    graph.output(graph.op("RESHAPE", [graph.input("x", [4], ir.DataType.FLOAT8E5M2)], [2, 2], name="y"))
    code, said = command.refusal(graph.model(format="tflite"))
    assert (code, said) == (1, "x: circle has no tensor type FLOAT8E5M2")


def test_an_option_that_circle_lacks(command: Command) -> None:
    graph = Graph("main")
    graph.output(graph.op("CAST", [graph.input("x", [4])], [4], name="a/y"))
    (node,) = graph.ir
    node.attributes["outDataType"] = ir.AttrInt64("outDataType", 22)
    code, said = command.refusal(graph.model(format="tflite"))
    assert code == 1
    assert said.startswith("CAST (a/y in main, module a): circle has no tensor type FLOAT8E5M2 (option")


def onnx_decoder(first_hidden: int = 1) -> Model:
    """A decoder of the older exporter, with a contract."""
    model = decode(static_decoder(first_hidden), [], None)
    SignContract().apply(model, SignContract().parser().parse_args([]))
    return model


def test_an_onnx_decoder_is_fused_as_one_of_circle(command: Command) -> None:
    """Signature, roles and history come along; norms, rotations and attention are recognized."""
    model = onnx_decoder()
    raised = command(model, "--check")
    assert "61 ONNX operators became" in command.said
    assert "on ONNX Runtime and LiteRT: 3 outputs the same" in command.said
    (signature,) = raised.signatures
    assert signature.name == "decode"
    kinds = [role.kind for value in signature.inputs.values() if (role := role_of(value)) is not None]
    assert kinds == ["tokens", "position", "key_cache", "value_cache"]
    assert [entry["filter"] for entry in raised.history] == ["raise.circle.py"]
    for fusion in (FuseRmsNorm, FuseRope, FuseAttention):
        filter_ = fusion()
        filter_.apply(raised, filter_.parser().parse_args([]))
    counts = operators(raised)
    assert (counts["RMS_NORM"], counts["ATTENTION"], counts["SOFTMAX"]) == (1, 1, 0)


def test_a_query_that_sees_no_key_gets_zeros(command: Command) -> None:
    """A mask that hides all keys from the first token: the guard against NaN is not removed."""
    raised = command(onnx_decoder(first_hidden=0), "--check")
    fusion = FuseAttention()
    fusion.apply(raised, fusion.parser().parse_args(["--explain"]))
    assert any("a query that sees no key gets zeros" in message for message in fusion.messages)
    assert operators(raised)["SOFTMAX"] == 1


def test_a_head_that_holds_the_transposed_table(command: Command) -> None:
    """`--check` scales the table of tokens in both models, and so its copies."""
    proto = static_decoder()
    (transpose,) = (node for node in proto.graph.node if node.output[0] == "head_weight")
    proto.graph.node.remove(transpose)
    (table,) = (onnx.numpy_helper.to_array(each) for each in proto.graph.initializer if each.name == "table")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(table.T.copy(), "head_weight"))
    model = decode(proto, [], None)
    SignContract().apply(model, SignContract().parser().parse_args([]))
    command(model, "--check")
    assert "3 outputs the same" in command.said


@pytest.mark.parametrize("name", ["lower_litert", "lower_onnx"])
def test_lowering_raises_onnx_first(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "in.onnx", tmp_path / "out"
    formats.save(onnx_decoder(), source)
    assert filters.load(name).main([str(source), "--check", "-o", str(target)]) == 0
    assert "the same, within" in capsys.readouterr().err
    assert formats.load(target).format == ("tflite" if name == "lower_litert" else "onnx")


def test_onnx_operators_without_a_counterpart(command: Command) -> None:
    text = '<ir_version: 10, opset_import: ["" : 21]> g (float[2,2] x) => (float y) { y = Det (x) }'
    code, said = command.refusal(decode(onnx.parser.parse_model(text), [], None))
    assert (code, said) == (
        1,
        "no counterpart in Circle: Det y (x float32 [2, 2], opset 21): Circle has no such operator",
    )


def decoder_of_onnx_runtime() -> Model:
    """One layer of GroupQueryAttention on a cache that is written in place, with weights in 4 bits."""
    text = """<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
        g (int64[1,1] ids, int32[1] position, float[1,2,8,16] k, float[1,2,8,16] v)
        => (float[1,1,64] y, float[1,2,8,16] nk, float[1,2,8,16] nv) <int32 total = {8}> {
            x = Gather (table, ids)
            qkv = com.microsoft.MatMulNBits <K = 64, N = 128, bits = 4, block_size = 32, accuracy_level = 4>
                (x, w, scales)
            y, nk, nv = com.microsoft.GroupQueryAttention <num_heads = 4, kv_num_heads = 2>
                (qkv, , , k, v, position, total)
        }"""
    proto = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    scales = random.standard_normal(256).astype(np.float32) / 32
    packed = random.integers(0, 256, (128, 2, 16)).astype(np.uint8)
    table = random.standard_normal((32, 64)).astype(np.float32)
    for name, array in (("w", packed), ("scales", scales), ("table", table)):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = formats.loads(proto.SerializeToString())
    kinds: tuple[Kind, ...] = ("tokens", "position", "key_cache", "value_cache", "logits", "key", "value")
    for kind, value in zip(kinds, (*model.graphs[0].inputs, *model.graphs[0].outputs), strict=True):
        is_of_layer = kind not in ("tokens", "position", "logits")
        value.meta["role"] = Role(kind, 0, "BNTH") if is_of_layer else Role(kind)
    model.add_default_signature("decode")
    return model


def test_a_decoder_of_onnx_runtime_is_checked(command: Command) -> None:
    """ONNX Runtime rounds no activations for it, and rows behind the last token do not count."""
    raised = command(decoder_of_onnx_runtime(), "--check")
    assert "the same, within" in command.said
    assert operators(raised)["o2o.attention"] == 1


def in_16_bits(kind: int) -> Model:
    """The decoder, with each float32 as float16 or bfloat16."""
    proto = static_decoder()
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    for tensor in proto.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            numbers = onnx.numpy_helper.to_array(tensor).astype(dtype)
            tensor.CopyFrom(onnx.numpy_helper.from_array(numbers, tensor.name))
    for value in (*proto.graph.input, *proto.graph.output):
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            value.type.tensor_type.elem_type = kind
    model = decode(proto, [], None)
    SignContract().apply(model, SignContract().parser().parse_args([]))
    return model


@pytest.mark.parametrize("kind", [onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16])
def test_16_bit_floats_become_float32(command: Command, kind: int) -> None:
    """So that engines run it, and fusions recognize it."""
    raised = command(in_16_bits(kind), "--check")
    assert "3 outputs the same" in command.said
    graph = raised.graphs[0]
    values = (*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs))
    assert {value.dtype for value in values}.isdisjoint({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
    fusion = FuseAttention()
    fusion.apply(raised, fusion.parser().parse_args([]))
    assert operators(raised)["SOFTMAX"] == 0


def test_16_bit_floats_stay_on_request(command: Command) -> None:
    raised = command(in_16_bits(onnx.TensorProto.FLOAT16), "--keep_float16")
    assert raised.graphs[0].outputs[0].dtype == ir.DataType.FLOAT16
    assert raised.graphs[0].initializers["table"].dtype == ir.DataType.FLOAT16


def test_float64_becomes_float32(command: Command) -> None:
    """LiteRT computes nothing in float64. The lowest number, as masks have it, stays finite."""
    proto = onnx.parser.parse_model(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[2, 3] x, double[3] d) => (float[2, 3] y, double[2, 3] z)
        <double lowest = {-1.7976931348623157e308}, double zero = {0.0}>
        {
            xd = Cast <to = 11> (x)
            sum = Add (xd, d)
            hidden = Less (sum, zero)
            scores = Where (hidden, lowest, sum)
            weights = Softmax (scores)
            z = Cos (weights)
            y = Cast <to = 1> (z)
        }"""
    )
    raised = command(decode(proto, [], None), "--check")
    assert "2 outputs the same" in command.said
    assert raised.graphs[0].outputs[1].dtype == ir.DataType.FLOAT
