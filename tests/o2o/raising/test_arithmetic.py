"""Elementwise arithmetic: each operator computes what ONNX says."""

from __future__ import annotations

import numpy as np
import pytest

from o2o.errors import ModelError
from tests.o2o.raising.evaluation import assert_same, operators, parsed, raised

UNARY = ("Neg", "Abs", "Exp", "Sin", "Cos", "Tan", "Sinh", "Cosh", "Tanh", "Sigmoid", "Erf", "Floor", "Ceil")
ACTIVATIONS = (
    "Relu (x)",
    "LeakyRelu <alpha = 0.3> (x)",
    "PRelu (x, slope)",
    "Elu <alpha = 0.7> (x)",
    "HardSigmoid (x)",
    "HardSwish (x)",
    "Softplus (x)",
    "Swish <alpha = 1.5> (x)",
    'Gelu <approximate = "tanh"> (x)',
    "Gelu (x)",
    "Selu (x)",
    "Mish (x)",
    "Celu <alpha = 2.0> (x)",
    "Shrink <lambd = 0.5, bias = 0.1> (x)",
    "ThresholdedRelu <alpha = 0.4> (x)",
    "Softsign (x)",
)


@pytest.mark.parametrize("op_type", UNARY)
def test_unary(op_type: str) -> None:
    assert_same(parsed("float[2,3] x", "float[2,3] y", f"y = {op_type} (x)"))


@pytest.mark.parametrize("expression", ACTIVATIONS)
def test_activations(expression: str) -> None:
    """Some have rules; the others are raised by what defines them in ONNX."""
    constants = "float[3] slope = {0.1, 0.2, 0.3}"
    assert_same(parsed("float[2,3] x", "float[2,3] y", f"y = {expression}", 24, constants))


@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Div", "Max", "Min", "Sum"])
def test_broadcast(op_type: str) -> None:
    assert_same(parsed("float[2,1,3] x, float[4,1] z", "float[2,4,3] y", f"y = {op_type} (x, z)"))


@pytest.mark.parametrize(
    ("expression", "dtype"),
    [
        ("Div (x, z)", "int64"),
        ("Mod (x, z)", "int64"),
        ("Mod <fmod = 1> (x, z)", "int64"),
        ("Div (x, z)", "int32"),
    ],
)
def test_integers_are_rounded_as_onnx_does(expression: str, dtype: str) -> None:
    proto = parsed(f"{dtype}[4] x, {dtype}[4] z", f"{dtype}[4] y", f"y = {expression}")
    numbers = np.array([[7, -7, 7, -7], [2, 2, -2, -2]], dtype)
    assert_same(proto, {"x": numbers[0], "z": numbers[1]})


@pytest.mark.parametrize("expression", ["Add (x, z)", "Mul (x, z)", "Sub (x, z)", "Max (x, z)"])
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16"])
def test_narrow_integers_wrap_around(expression: str, dtype: str) -> None:
    proto = parsed(f"{dtype}[4] x, {dtype}[4] z", f"{dtype}[4] y", f"y = {expression}")
    numbers = np.array([[100, 7, 3, 1], [100, 100, 5, 2]], dtype)
    assert_same(proto, {"x": numbers[0], "z": numbers[1]})


@pytest.mark.parametrize("power", [2, 0.5, -0.5, 3, 0])
def test_powers(power: float) -> None:
    proto = parsed("float[4] x", "float[4] y", "y = Pow (x, p)", constants=f"float p = {{{power}}}")
    assert_same(proto, {"x": np.array([0.5, 1, 2, 3], np.float32)})


@pytest.mark.parametrize("form", ["Sqrt (x) r = Reciprocal (s)", "Sqrt (x) r = Div (one, s)"])
def test_inverse_roots_are_one_operator(form: str) -> None:
    """As the matching of norms wants them."""
    proto = parsed("float[3] x", "float[3] r", f"s = {form}", constants="float one = {1}")
    assert operators(assert_same(proto, {"x": np.array([0.5, 1, 2], np.float32)})) == ["RSQRT"]


@pytest.mark.parametrize(
    "nodes",
    [
        "a = Div (x, root) b = Erf (a) c = Add (b, one) d = Mul (x, c) y = Mul (d, half)",
        "a = Mul (x, inverse) b = Erf (a) c = Add (one, b) d = Mul (half, x) y = Mul (d, c)",
        "a = Div (x, root) b = Erf (a) c = Add (b, one) d = Mul (c, half) y = Mul (x, d)",
    ],
)
def test_gelu_of_exporters_is_one_operator(nodes: str) -> None:
    constants = "float one = {1}, float half = {0.5}, float root = {1.4142135}, float inverse = {0.70710677}"
    model = assert_same(parsed("float[4] x", "float[4] y", nodes, constants=constants))
    assert operators(model) == ["GELU"]


def test_near_gelu_stays_what_it_is() -> None:
    nodes = "a = Div (x, root) b = Erf (a) c = Add (b, one) d = Mul (z, c) y = Mul (d, half)"
    constants = "float one = {1}, float half = {0.5}, float root = {1.4142135}"
    model = assert_same(parsed("float[4] x, float[4] z", "float[4] y", nodes, constants=constants))
    assert "GELU" not in operators(model)


@pytest.mark.parametrize(("low", "high"), [(0, 6), (-0.5, 0.5)])
def test_clip(low: float, high: float) -> None:
    constants = f"float low = {{{low}}}, float high = {{{high}}}"
    assert_same(parsed("float[5] x", "float[5] y", "y = Clip (x, low, high)", constants=constants))
    assert_same(parsed("float[5] x", "float[5] y", f"y = Clip <min = {float(low)}> (x)", 6))


@pytest.mark.parametrize("to", [1, 6, 7, 9, 10])
def test_casts(to: int) -> None:
    dtype = {1: "float", 6: "int32", 7: "int64", 9: "bool", 10: "float16"}[to]
    assert_same(parsed("float[6] x", f"{dtype}[6] y", f"y = Cast <to = {to}> (x)"))


def test_dropout_that_trains_is_refused() -> None:
    constants = "float ratio = {0.5}, bool training = {1}"
    proto = parsed("float[2,3] x", "float[2,3] y", "y = Dropout (x, ratio, training)", 22, constants)
    with pytest.raises(ModelError, match="it trains"):
        raised(proto)
