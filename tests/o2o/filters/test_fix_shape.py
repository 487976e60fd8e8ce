"""fix.shape: numbers for symbolic dimensions, and what becomes constant."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from o2o import filters, formats
from o2o.model import dims_of
from tests.o2o.onnx_graphs import chain, data_of, decoder

pytest.importorskip("onnxruntime")

SIZES = ["B=1", "T=3", "P=4", "S=7"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(proto: onnx.ModelProto, *arguments: str) -> int:
    Path("in.onnx").write_bytes(data_of(proto))
    return filters.load("fix_shape").main([*arguments, "in.onnx", "--check", "-o", "out.onnx"])


def dynamic() -> onnx.ModelProto:
    """What exporters write: shapes that are computed, an If on a rank, a mask of positions."""
    return onnx.parser.parse_model("""
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[B, T, 8] x) => (float[B, T, 2, 4] y, int64[T] at, float[B, T, 8] z)
    <int64 zero = {0}, int64 one = {1}, int64[2] tail = {2, 4}, int64 three = {3}, int64[1] axis = {0}>
    {
        shape = Shape (x)
        b = Gather (shape, zero)
        t = Gather (shape, one)
        b1 = Unsqueeze (b, axis)
        t1 = Unsqueeze (t, axis)
        to = Concat <axis = 0> (b1, t1, tail)
        y = Reshape (x, to)
        at = Range (zero, t, one)
        rank = Size (shape)
        is_three = Equal (rank, three)
        z = If (is_three) <
            then_branch = then () => (float[B, T, 8] p) { p = Neg (x) },
            else_branch = otherwise () => (float[B, T, 8] q) { q = Abs (x) }
        >
    }
    """)


def test_a_decoder_gets_static_shapes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(decoder(), *SIZES) == 0
    said = capsys.readouterr().err
    assert "fixed B=1, T=3, P=4, S=7" in said
    assert "all shapes are static" in said
    assert "checked on ONNX Runtime: 3 outputs the same" in said
    graph = formats.load("out.onnx").graphs[0]
    assert [dims_of(value) for value in graph.inputs][:2] == [(1, 3), (1, 7)]
    assert all(dims_of(value) for node in graph for value in node.outputs)
    onnx.checker.check_model("out.onnx", full_check=True)


def test_what_becomes_constant() -> None:
    assert run(dynamic(), "B=2", "T=3") == 0
    graph = formats.load("out.onnx").graphs[0]
    assert {node.op_type for node in graph} <= {"Reshape", "Range", "If", "Neg"}
    reshape = next(node for node in graph if node.op_type == "Reshape")
    to = reshape.inputs[1]
    assert to is not None
    assert to.const_value is not None
    np.testing.assert_array_equal(to.const_value.numpy(), [2, 3, 2, 4])


def test_by_the_shape_of_an_input() -> None:
    assert run(chain(), "--input", "x", "[2,5,8]") == 0
    assert [dims_of(value) for value in formats.load("out.onnx").graphs[0].outputs] == [(2, 5, 2, 4), (3,)]


def test_expressions_follow() -> None:
    proto = decoder()
    proto.graph.input[1].type.tensor_type.shape.dim[1].dim_param = "P + T"
    assert run(proto, "B=1", "T=2", "P=3") == 0
    assert dims_of(formats.load("out.onnx").graphs[0].inputs[1]) == (1, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give each symbolic dimension a number, as B=1; there are: B (5 inputs), T (2 inputs)"),
        (["B=1", "T=1"], "the dimension 'S' of attention_mask has no number: give S=N"),
        ([*SIZES, "Q=1"], "no input has a dimension 'Q'; symbolic dimensions: B, T, S, P"),
        (["B=x"], "'B=x' is not NAME=N"),
        ([*SIZES, "--input", "nothing", "[1]"], "there is no input 'nothing'"),
        ([*SIZES, "--input", "input_ids", "[1]"], "input_ids has 2 dimensions"),
        ([*SIZES, "--input", "input_ids", "[1,9]"], "the dimension 'T' would be 3, and 9 in input_ids"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(decoder(), *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_dimensions_without_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    proto = chain()
    for dim in list(proto.graph.input[0].type.tensor_type.shape.dim)[:2]:
        dim.ClearField("dim_param")
    assert run(proto, "--input", "bias", "[8]") == 2
    assert "a dimension of x ['?', '?', 8] has no name: give its whole shape" in capsys.readouterr().err
    assert run(proto, "--input", "x", "[1,2,8]") == 0


def test_weights_are_not_stored_twice() -> None:
    proto = chain(large=True)
    proto.graph.node.insert(0, onnx.helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]))
    proto.graph.node.insert(1, onnx.helper.make_node("Transpose", ["wt"], ["wtt"], perm=[1, 0]))
    proto.graph.node[3].input[1] = "wtt"
    assert run(proto, "B=1", "T=2") == 0
    assert Path("out.onnx").stat().st_size < Path("in.onnx").stat().st_size + 4096
