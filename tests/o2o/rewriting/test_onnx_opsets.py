"""A newer opset is imported where each operator means the same in it, and refused where not."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from o2o import formats
from o2o.errors import ModelError
from o2o.rewriting.onnx_opsets import opset_of, raise_opset
from tests.o2o.onnx_fusion.comparison import assert_same, model_of, read

pytest.importorskip("onnxruntime")

X = {"x": np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)}


def test_axes_and_parts_become_operands_and_attributes() -> None:
    before = model_of("""g (float[N, 4] x, bool c) => (float[N, 2] y, float[N, 1] z) <bool yes = {1}> {
        m = ReduceMean <axes = [-1], keepdims = 1> (x) a, b = Split <axis = 1> (x) y = Add (a, b)
        z = If (yes) <then_branch = t () => (float[N, 1] t0) { t0 = ReduceMax <axes = [1]> (x) },
                      else_branch = e () => (float[N, 1] e0) { e0 = Identity (m) }> }""").SerializeToString()
    proto = onnx.load_from_string(before)
    proto.graph.input.pop()
    model = read(proto)
    raise_opset(model, 23)
    after = onnx.load_from_string(formats.dumps(model))
    assert (opset_of(model), after.ir_version) == (23, 11)
    onnx.checker.check_model(after, full_check=True)
    assert_same(proto, after, X)


@pytest.mark.parametrize(
    ("node", "opset", "reason"),
    [
        ("y = Upsample (x, s)", 9, "opset 9 is older than 13"),
        ("y = Resize (x, , s)", 13, "Resize of opset 13 computes something else in opset 23"),
        ("y = Cast <to = 17> (x)", 17, "Cast of opset 17 computes something else in opset 23"),
    ],
)
def test_what_means_something_else_is_refused(node: str, opset: int, reason: str) -> None:
    model = read(model_of(f"g (float[N, 4] x, float[2] s) => (float[N, M] y) {{ {node} }}", opset))
    before = formats.dumps(model)
    with pytest.raises(ModelError, match=reason):
        raise_opset(model, 23)
    assert formats.dumps(model) == before


def test_a_newer_model_stays() -> None:
    model = read(model_of("g (float[N, 4] x) => (float[N, 4] y) { y = Neg (x) }", 24))
    raise_opset(model, 23)
    assert opset_of(model) == 24
