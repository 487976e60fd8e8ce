"""bind.weights.py on ONNX: weights without data are found in a checkpoint by names and shapes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from o2o.filters.bind_weights import main
from tests.o2o.onnx_graphs import data_of

pytest.importorskip("onnxruntime")
V, D, F = 48, 16, 64
generator = np.random.default_rng(0)
STORED = {
    name: generator.standard_normal(shape).astype(np.float32)
    for name, shape in {
        "model.embed_tokens.weight": (V, D),
        "model.layers.0.mlp.up_proj.weight": (F, D),
        "model.layers.0.mlp.down_proj.weight": (D, F),
        "model.layers.0.self_attn.o_proj.weight": (D, D),
        "model.norm.weight": (D,),
    }.items()
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("checkpoint").mkdir()
    save_file(STORED, "checkpoint/model.safetensors")
    Path("checkpoint/config.json").write_text("{}")


def model(square: bool = True) -> onnx.ModelProto:
    """As the older exporter of torch writes it: matrices are transposed, and have names of no module."""
    up, down, o = (
        f"model.layers.0.{name}.weight" for name in ("mlp.up_proj", "mlp.down_proj", "self_attn.o_proj")
    )
    weights = {
        "m.model.embed_tokens.weight": STORED["model.embed_tokens.weight"],
        "onnx::MatMul_1": STORED[o].T,
        "onnx::MatMul_2": STORED[up].T,
        "onnx::MatMul_3": STORED[down].T,
        "onnx::MatMul_4": STORED["model.embed_tokens.weight"].T,
        "m.model.norm.weight": STORED["model.norm.weight"],
    }

    def product(x: str, weight: int, y: str, module: str) -> onnx.NodeProto:
        return helper.make_node("MatMul", [x, f"onnx::MatMul_{weight}"], [y], name=f"{module}/MatMul")

    layer = "/m/model/layers.0"
    nodes = [
        helper.make_node(
            "Gather", ["m.model.embed_tokens.weight", "ids"], ["x"], name="/m/model/embed_tokens/Gather"
        ),
        product("x", 1, "o", f"{layer}/self_attn/o_proj"),
        product("o", 2, "up", f"{layer}/mlp/up_proj"),
        product("up", 3, "down", f"{layer}/mlp/down_proj"),
        helper.make_node("Mul", ["down", "m.model.norm.weight"], ["normed"], name="/m/model/norm/Mul"),
        product("normed", 4, "logits", "/m/lm_head"),
    ]
    graph = helper.make_graph(
        nodes if square else [nodes[0], product("x", 1, "logits", f"{layer}/self_attn/o_proj")],
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [1, "T"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, "T", V if square else D])],
        [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if not square:
        del proto.graph.initializer[2:]
    onnx.checker.check_model(proto)
    return proto


def without_data(proto: onnx.ModelProto) -> None:
    onnx.save(proto, "in.onnx", save_as_external_data=True, location="weights.bin", size_threshold=100)
    Path("weights.bin").unlink()


def bind(*arguments: str) -> int:
    return main(["in.onnx", "--checkpoint", "checkpoint", "-o", "out.onnx", *arguments])


def arrays(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def same_as_before(proto: onnx.ModelProto) -> None:
    bound = arrays(onnx.load("out.onnx"))
    for name, array in arrays(proto).items():
        np.testing.assert_array_equal(bound[name], array)


def test_external_data_whose_file_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    without_data(model())
    assert bind("--check") == 0
    assert "bound 5 tensors" in capsys.readouterr().err
    same_as_before(model())


def test_parameters_that_are_inputs(capsys: pytest.CaptureFixture[str]) -> None:
    proto = model()
    whole = arrays(proto)
    del proto.graph.initializer[:]
    for name, array in whole.items():
        proto.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape))
    Path("in.onnx").write_bytes(data_of(proto))
    assert bind("--check") == 0
    assert "6 inputs became constant" in capsys.readouterr().err
    same_as_before(model())
    assert [value.name for value in onnx.load("out.onnx").graph.input] == ["ids"]


def test_initializers_without_data() -> None:
    proto = model()
    for tensor in proto.graph.initializer:
        tensor.ClearField("raw_data")
    Path("in.onnx").write_bytes(data_of(proto))
    assert bind() == 0
    same_as_before(model())


def test_a_square_matrix_needs_a_witness(capsys: pytest.CaptureFixture[str]) -> None:
    without_data(model(square=False))
    assert bind("--partial") == 1
    assert "is square, and no other matrix shows" in capsys.readouterr().err


def test_what_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    without_data(model())
    assert main(["in.onnx", "-o", "out.onnx"]) == 1
    assert "--checkpoint DIR" in capsys.readouterr().err
    save_file(
        {name: a for name, a in STORED.items() if "up_proj" not in name}, "checkpoint/model.safetensors"
    )
    assert bind() == 1
    assert "lacks onnx::MatMul_2" in capsys.readouterr().err
    save_file({**STORED, "vision.weight": np.zeros(3, np.float32)}, "checkpoint/model.safetensors")
    assert bind() == 1
    assert "vision.weight, which the model does not use" in capsys.readouterr().err
    assert bind("--partial") == 0
