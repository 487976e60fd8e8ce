"""Activations of com.microsoft, compared with ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest

from tests.o2o.raising.onnx_runtime import model_of, results

X = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32) * 3
BIAS = np.linspace(-1, 1, 6, dtype=np.float32)


@pytest.mark.parametrize(
    ("op_type", "inputs", "attributes"),
    [
        ("Gelu", [X], {}),
        ("BiasGelu", [X, BIAS], {}),
        ("FastGelu", [X], {}),
        ("FastGelu", [X, BIAS], {}),
        ("QuickGelu", [X], {"alpha": 1.5}),
        ("QuickGelu", [X], {"alpha": 1.0}),
        ("FusedMatMul", [X, X], {"transB": 1, "alpha": 0.5}),
        ("FusedMatMul", [X, X], {"transA": 1}),
        ("FusedGemm", [X, X, X[:, :2]], {"transB": 1, "activation": "Tanh"}),
    ],
    ids=str,
)
def test_activation(op_type: str, inputs: list, attributes: dict) -> None:
    expected, actual, _ = results(model_of(op_type, inputs, 1, **attributes), inputs)
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-4, atol=1e-5)
