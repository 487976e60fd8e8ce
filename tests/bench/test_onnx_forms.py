"""bench/onnx_forms.py : each form computes the product that its name says."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper

pytest.importorskip("onnxruntime")
from bench import onnx_forms
from tests.tolerances import assert_close


@pytest.mark.parametrize("name", [name for name in onnx_forms.FORMS if "MatMulNBits" not in name])
def test_floats(name: str) -> None:
    model = onnx_forms.model(onnx_forms.FORMS[name], 6, 8)
    x = np.random.default_rng(2).standard_normal((3, 8)).astype(np.float32)
    matrices = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    outputs = onnx_forms.session(model, 1).run(None, {"x": x})
    assert len(outputs) == onnx_forms.MATRICES
    for y, w in zip(outputs, matrices, strict=True):
        assert_close(y, x @ (w if w.shape == (8, 6) else w.T))


def test_it_prints_a_line_a_form(capsys: pytest.CaptureFixture[str]) -> None:
    onnx_forms.main(
        ["--rows", "16", "--columns", "256", "--tokens", "1,2", "--rounds", "1", "--threads", "1"]
    )
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * len(onnx_forms.FORMS)
    assert lines[0].endswith("1.00x")
