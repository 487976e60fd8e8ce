"""RMSNorm of any exporter becomes one operator of ONNX, in float32 and half precision."""

from __future__ import annotations

import numpy as np
import pytest

from o2o.onnx_fusion.forms import Form
from o2o.onnx_fusion.rms_norm import OnnxRmsNormRule
from tests.o2o.onnx_fusion.comparison import assert_same, fused, model_of, operators, outputs

pytest.importorskip("onnxruntime")

X = {"x": np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)}
WEIGHT = "float[4] w = {1, 2, 3, 4}"
CONSTANTS = f"<{WEIGHT}, float two = {{2}}, float eps = {{0.001}}, float one = {{1}}, int64[1] last = {{-1}}>"
INVERSE = {
    "reciprocal": "inv = Reciprocal (root) y0 = Mul (x, inv)",
    "one over the root": "inv = Div (one, root) y0 = Mul (inv, x)",
    "divided": "y0 = Div (x, root)",
}


def norm(square: str = "Pow (x, two)", inverse: str = "divided", end: str = "y = Mul (w, y0)") -> str:
    return f"""g (float[B, T, 4] x) => (float[B, T, 4] y) {CONSTANTS} {{
        square = {square} mean = ReduceMean <axes = [-1]> (square)
        sum = Add (mean, eps) root = Sqrt (sum) {INVERSE[inverse]} {end} }}"""


@pytest.mark.parametrize("form", ["standard", "ort"])
@pytest.mark.parametrize("square", ["Pow (x, two)", "Mul (x, x)"])
@pytest.mark.parametrize("inverse", INVERSE)
def test_forms_of_exporters(square: str, inverse: str, form: Form) -> None:
    before = model_of(norm(square, inverse))
    after, result = fused(before, OnnxRmsNormRule(form))
    name = "RMSNormalization" if form == "standard" else "SimplifiedLayerNormalization"
    assert (result.rewritten, operators(after)) == (1, {name: 1})
    assert after.opset_import[0].version == (23 if form == "standard" else 17)
    assert_same(before, after, X)


def test_a_computed_weight_is_the_scale() -> None:
    """Gemma multiplies by 1 + w."""
    before = model_of(norm(end="v = Add (one, w) y = Mul (y0, v)"))
    after, _ = fused(before, OnnxRmsNormRule("standard"))
    assert operators(after) == {"Add": 1, "RMSNormalization": 1}
    assert_same(before, after, X)


def test_without_a_weight() -> None:
    before = model_of(norm(end="y = Neg (y0)"))
    after, _ = fused(before, OnnxRmsNormRule("standard"))
    assert operators(after) == {"RMSNormalization": 1, "Neg": 1}
    assert_same(before, after, X)


def test_half_precision_is_one_operator() -> None:
    """The norm in float32 and the product in float16 are the two stages of RMSNormalization."""
    text = norm(end="half = Cast <to = 10> (y0) y = Mul (w, half)").replace("x", "wide")
    text = text.replace("float[B, T, 4] wide", "float16[B, T, 4] x").replace(
        "float[B, T, 4] y", "float16[B, T, 4] y"
    )
    text = text.replace("{\n", "{ wide = Cast <to = 1> (x)\n", 1).replace(
        WEIGHT, WEIGHT.replace("float", "float16")
    )
    before = model_of(text.replace("awidees", "axes").replace("inv", "v0"))
    after, _ = fused(before, OnnxRmsNormRule("standard"))
    assert operators(after) == {"RMSNormalization": 1}
    feeds = {"x": X["x"].astype(np.float16)}
    np.testing.assert_allclose(outputs(after, feeds)["y"], outputs(before, feeds)["y"], rtol=2e-3)


NEAR_MISSES = {
    "mean over another axis": ("[-1]", "[1]"),
    "no epsilon": ("Add (mean, eps)", "Add (mean, mean)"),
    "a product": ("Pow (x, two)", "Mul (x, w)"),
    "a cube": ("two = {2}", "two = {3}"),
    "another operand": ("Div (x, root)", "Div (square, root)"),
    "a root that is used": ("y = Mul (w, y0)", "y1 = Mul (w, y0) y = Add (y1, root)"),
    "LayerNorm": (
        "square = Pow (x, two)",
        "m = ReduceMean <axes = [-1]> (x) x1 = Sub (x, m) square = Pow (x1, two)",
    ),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses_stay(name: str) -> None:
    text = norm().replace(*NEAR_MISSES[name])
    text = text.replace("Div (x,", "Div (x1,") if name == "LayerNorm" else text
    before = model_of(text)
    after, result = fused(before, OnnxRmsNormRule("standard"))
    assert result.rewritten == 0
    assert after == before
