"""--check of int8 weights: effects of rounded activations are measured, and defects beside them are seen."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import pytest

from o2o import formats
from o2o.check.activation_rounding import round_activations
from o2o.filters import quantize_weights
from o2o.model import Model
from o2o.rewriting.builder import add_constant
from tests.o2o.graphs import Graph, run, weights

OFFSET = 60


def cancelling() -> Model:
    """y = (g x + 60) W', where the rows of W sum to zero: a small sum of large terms."""
    graph = Graph("main")
    x = graph.input("x", [1, 256])
    scaled = graph.op("MUL", [x, graph.constant("gain", weights(256, seed=1))], [1, 256], name="scaled")
    offset = graph.constant("offset", np.float32([OFFSET]))
    far = graph.op("ADD", [scaled, offset], [1, 256], name="far")
    matrix = weights(96, 256)
    matrix -= matrix.mean(1, keepdims=True)
    graph.output(graph.fc(far, graph.constant("weight", matrix), "y"))
    return graph.model(format="tflite")


@pytest.fixture
def quantized(tmp_path, capsys):
    """Runs the filter with --check: exit code and last line."""

    def run_it() -> tuple[int, str]:
        formats.save(cancelling(), tmp_path / "in.tflite")
        arguments = [str(tmp_path / "in.tflite"), "-o", str(tmp_path / "out.tflite"), "--check"]
        code = quantize_weights.main(arguments)
        return code, capsys.readouterr().err

    return run_it


def test_the_effect_of_rounded_activations_is_accepted(quantized, monkeypatch) -> None:
    code, text = quantized()
    assert code == 0, text
    monkeypatch.setattr("o2o.check.signature_comparison.is_explained", lambda *given: False)
    code, text = quantized()
    assert code == 1
    assert "output y of main differs" in text


@pytest.mark.parametrize("change", [np.negative, lambda gain: np.roll(gain, 1), lambda gain: 3 * gain])
def test_a_defect_is_not_the_effect_of_rounding(quantized, monkeypatch, change) -> None:
    apply = quantize_weights.QuantizeWeights.apply

    def damaged(self, model: Model, args) -> bool:
        changed = apply(self, model, args)
        (graph,) = model.graphs
        multiplication = next(node for node in graph if node.op_type == "MUL")
        gain = graph.initializers["gain"].const_value.numpy()
        multiplication.replace_input_with(1, add_constant(graph, change(gain), "another"))
        return changed

    monkeypatch.setattr(quantize_weights.QuantizeWeights, "apply", damaged)
    code, text = quantized()
    assert code == 1, text
    assert re.search("output y of main differs .* first tensor that differs is scaled", text), text


def test_it_rounds_to_the_grid_of_each_row() -> None:
    graph = Graph("main")
    x = graph.input("x", [2, 4])
    graph.output(graph.fc(x, graph.constant("weight", np.eye(4, dtype=np.float32)), "y"))
    model = graph.model(format="tflite")
    round_activations(model.graphs[0], ["weight"])
    rows = np.float32([[127, 1.4, -2.6, 0], [0, 0, 0, 0]])
    (y,) = run(model, {"x": rows}).values()
    np.testing.assert_allclose(y, [[127, 1, -3, 0], [0, 0, 0, 0]], atol=1e-5)
    assert model.graphs[0].inputs[0].dtype == ir.DataType.FLOAT


def test_a_bias_in_float16_becomes_float32(tmp_path, capsys, monkeypatch) -> None:
    """XNNPACK refuses int8 weights beside a bias that a DEQUANTIZE computes: LiteRT would not load it."""
    graph = Graph("main")
    x = graph.input("x", [1, 64])
    half = [
        graph.constant(name, w.astype(np.float16)) for name, w in (("w", weights(32, 64)), ("b", weights(32)))
    ]
    wide = [
        graph.op("DEQUANTIZE", [v], v.shape.numpy(), ir.DataType.FLOAT, name=f"{v.name}_wide") for v in half
    ]
    graph.output(graph.op("FULLY_CONNECTED", [x, *wide], [1, 32], name="y", keepNumDims=False))
    source, target = tmp_path / "in.tflite", tmp_path / "out.tflite"
    formats.save(graph.model(format="tflite"), source)
    assert quantize_weights.main([str(source), "-o", str(target), "--check"]) == 0, capsys.readouterr().err
    assert [node.op_type for node in formats.load(target).graphs[0]] == ["FULLY_CONNECTED"]
    monkeypatch.setattr("o2o.quantization.quantize._widen_bias", lambda use: None)
    capsys.readouterr()
    assert quantize_weights.main([str(source), "-o", str(target), "--check"]) == 1
    assert "XNNPACK, which LiteRT uses by default, cannot run the result" in capsys.readouterr().err
