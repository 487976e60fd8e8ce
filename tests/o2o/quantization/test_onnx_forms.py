"""Quantized weights of ONNX models: what the stored numbers mean, and what runtimes compute with them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from o2o import formats
from o2o.filters import merge_circles, quantize_weights
from o2o.formats import onnx_writer
from tests.o2o.onnx_graphs import data_of
from tests.tolerances import assert_close

onnxruntime = pytest.importorskip("onnxruntime")
V, D, F = 160, 64, 96
IDS = np.array([[3, 150, 7]])
generator = np.random.default_rng(0)
TABLE, UP, DOWN, BIAS = (
    (generator.standard_normal(shape) / 8).astype(np.float32) for shape in ((V, D), (D, F), (D, F), (D,))
)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def language_model(opset: int = 21, tokens: str | int = "T", half: bool = False) -> onnx.ModelProto:
    """Embedding, MatMul, Gemm with a bias, and an LM head tied to the embedding, behind a Transpose."""
    kind = "float16" if half else "float"
    proto = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : {opset}]>
        g (int64[1, {tokens}] input_ids) => ({kind}[1, {tokens}, {V}] logits) <int64[2] flat = {{-1, {F}}},
            int64[3] three = {{1, -1, {D}}}> {{
            x = Gather (table, input_ids)
            up_ = MatMul (x, up)
            active = Tanh (up_)
            rows = Reshape (active, flat)
            down_ = Gemm <transB = 1> (rows, down, bias)
            y = Reshape (down_, three)
            head = Transpose <perm = [1, 0]> (table)
            logits = MatMul (y, head)
        }}""")
    for name, array in (("table", TABLE), ("up", UP), ("down", DOWN), ("bias", BIAS)):
        proto.graph.initializer.append(
            numpy_helper.from_array(array.astype(np.float16 if half else np.float32), name)
        )
    onnx.checker.check_model(proto, full_check=True)
    return proto


def quantized(*arguments: str, proto: onnx.ModelProto | None = None) -> onnx.ModelProto:
    Path("in.onnx").write_bytes(data_of(proto or language_model()))
    assert quantize_weights.main(["in.onnx", "-o", "out.onnx", *arguments]) == 0
    return onnx.load("out.onnx")


def run(proto: onnx.ModelProto, ids: np.ndarray = IDS) -> np.ndarray:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    logits: np.ndarray = session.run(None, {"input_ids": ids})[0]
    return logits.astype(np.float32)


def evaluated(proto: onnx.ModelProto) -> np.ndarray:
    """What the standard says."""
    logits: np.ndarray = ReferenceEvaluator(proto).run(None, {"input_ids": IDS})[0]
    return logits


def assert_near(logits: np.ndarray, expected: np.ndarray) -> None:
    """ONNX Runtime quantizes activations, also behind DequantizeLinear, which it fuses."""
    assert np.abs(logits - expected).max() < 0.03 * np.abs(expected).max()


def rounded(w: np.ndarray) -> np.ndarray:
    """What int8 with a scale for each row stands for."""
    scale = np.abs(w).max(1, keepdims=True) / np.float32(127)
    return (np.rint(w / scale) * scale).astype(np.float32)


def computed(table: np.ndarray, up: np.ndarray, down: np.ndarray, head: np.ndarray) -> np.ndarray:
    return (np.tanh(table[IDS] @ up) @ down.T + BIAS) @ head.T


def operators(proto: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in proto.graph.node}


def test_int8_of_the_standard_form_is_the_rounded_matrix() -> None:
    one = quantized("--recipe", "weight_only_int8")
    onnx.checker.check_model(one, full_check=True)
    table = rounded(TABLE)
    expected = computed(table, rounded(UP.T).T, rounded(DOWN), table)
    assert_close(evaluated(one), expected)
    assert_near(run(one), expected)
    assert {tensor.data_type for tensor in one.graph.initializer if len(tensor.dims) == 2} == {
        onnx.TensorProto.INT8,
        onnx.TensorProto.FLOAT,  # scales of looked up rows
    }
    assert [list(t.dims) for t in one.graph.initializer if t.data_type == onnx.TensorProto.INT8] == [
        [V, D],
        [D, F],
        [D, F],
    ]


@pytest.mark.parametrize("recipe", ["dynamic_int8", "dynamic_int4_block32", "dynamic_int4_block32_head"])
def test_both_forms_store_the_same_numbers(recipe: str) -> None:
    native = quantized("--recipe", recipe)
    standard = quantized("--recipe", recipe, "--form", "standard", "--report", "report.json")
    assert {"MatMulNBits", "GatherBlockQuantized"} <= operators(native)
    assert operators(native).isdisjoint({"MatMul", "Gemm", "Gather", "Transpose"})
    assert operators(standard) >= {"DequantizeLinear", "MatMul", "Gemm"}
    meant, exact = evaluated(standard), run(language_model())
    assert_near(run(native), meant)
    assert_near(run(standard), meant)
    lost = json.loads(Path("report.json").read_text())["error"]["rms"]
    assert 0 < np.abs(meant - exact).max() / np.abs(exact).max() < 8 * lost


def test_the_tied_table_is_stored_once() -> None:
    for form in ("ort", "standard"):
        one = quantized("--form", form)
        stored = [
            t for t in one.graph.initializer if t.data_type in (onnx.TensorProto.UINT8, onnx.TensorProto.INT8)
        ]
        assert len(stored) == 3
        assert {int(np.prod(tensor.dims)) for tensor in stored} == {V * D, D * F}


def test_float16_keeps_the_operators() -> None:
    one = quantized("--recipe", "float16")
    half = [array.astype(np.float16).astype(np.float32) for array in (TABLE, UP, DOWN, TABLE)]
    assert_close(run(one), computed(*half))
    assert operators(one) == operators(language_model()) | {"Cast"}


@pytest.mark.parametrize("form", ["ort", "standard"])
def test_a_model_of_float16(form: str) -> None:
    proto = language_model(half=True)
    one = quantized("--form", form, proto=proto)
    onnx.checker.check_model(one, full_check=True)
    assert_near(run(one), run(proto))


def test_an_old_opset_is_raised_for_the_standard_form(capsys: pytest.CaptureFixture[str]) -> None:
    one = quantized("--recipe", "dynamic_int4_block32", "--form", "standard", proto=language_model(opset=12))
    assert one.opset_import[0].version == 21
    onnx.checker.check_model(one, full_check=True)
    assert np.abs(run(one) - run(language_model())).max() < 0.3 * np.abs(run(language_model())).max()
    assert quantized("--recipe", "dynamic_int8", proto=language_model(opset=12)).opset_import[0].version == 12


@pytest.mark.parametrize("form", ["ort", "standard"])
def test_branches_share_quantized_weights(form: str) -> None:
    for name, tokens in (("prefill", 4), ("decode", 1)):
        Path(f"{name}.onnx").write_bytes(data_of(language_model(tokens=tokens)))
    assert merge_circles.main(["prefill.onnx", "decode.onnx", "-o", "merged.onnx"]) == 0
    assert quantize_weights.main(["merged.onnx", "--form", form, "--check", "-o", "out.onnx"]) == 0
    one = onnx.load("out.onnx")
    onnx.checker.check_model("out.onnx", full_check=True)
    if form == "ort":
        assert sum(int(np.prod(tensor.dims)) >= D * F for tensor in one.graph.initializer) == 3
    alone = quantized("--form", form)
    for ids in (IDS[:, :1], np.array([[1, 2, 3, 4]])):
        assert_close(run(one, ids), run(alone, ids))


def test_what_is_not_quantized_says_why() -> None:
    proto = onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[1, {D}] x) => (float[1, {F}] y, float[{D}, {F}] up, float[{D}, {D}] left) {{
            y = MatMul (x, up)
            left = MatMul (down, flipped)
        }}""")
    for name, array in (("up", UP), ("down", DOWN), ("flipped", DOWN.T.copy())):
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    quantized("--report", "report.json", proto=proto)
    tensors = {entry["name"]: entry for entry in json.loads(Path("report.json").read_text())["tensors"]}
    assert tensors["up"]["reason"] == "it is an output"
    assert tensors["flipped"]["scheme"] == "int8"


def test_external_weights_stay_beside_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_writer, "LARGE_EXTERNAL", 4096)
    onnx.save(language_model(), "in.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    assert quantize_weights.main(["in.onnx", "-o", "out.onnx"]) == 0
    assert Path("out.onnx.data").stat().st_size >= V * D
    inside = quantized()
    assert_close(run(onnx.load("out.onnx")), run(inside))
    assert formats.load("out.onnx").history[-1]["filter"] == "quantize.weights.py"


def test_form_is_for_onnx(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from tests.o2o.quantization.models import language_model as circle

    formats.save(circle(), tmp_path / "in.circle")
    assert quantize_weights.main(["in.circle", "--form", "ort", "-o", "out.circle"]) == 2
    assert "--form is for ONNX" in capsys.readouterr().err
