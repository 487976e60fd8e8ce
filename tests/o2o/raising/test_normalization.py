"""Norms."""

from __future__ import annotations

import numpy as np
import pytest

from o2o.rewriting.layer_norm import match_layer_norm
from tests.o2o.raising.evaluation import assert_same, parsed

VECTORS = (
    "float[3] w = {1, 2, 3}, float[3] b = {0.1, 0.2, 0.3}, float[3] m = {0, 0.5, 1}, float[3] v = {1, 2, 0.5}"
)


@pytest.mark.parametrize(
    ("nodes", "shape"),
    [
        ("y = LayerNormalization (x, w, b)", "[2,4,3]"),
        ("y = LayerNormalization <axis = 1, epsilon = 0.1> (x, w)", "[2,4,3]"),
        ("y = BatchNormalization (x, w, b, m, v)", "[2,3,4]"),
        ("y = InstanceNormalization (x, w, b)", "[2,3,4]"),
        ("y = LpNormalization <axis = 1> (x)", "[2,3,4]"),
        ("y = LpNormalization <p = 1> (x)", "[2,3,4]"),
        ("y = GroupNormalization <num_groups = 3> (x, w, b)", "[2,3,4]"),
        ("y = MeanVarianceNormalization <axes = [0, 2]> (x)", "[2,3,4]"),
        ("y = RMSNormalization (x, w)", "[2,4,3]"),
    ],
)
def test_norms(nodes: str, shape: str) -> None:
    proto = parsed(f"float{shape} x", f"float{shape} y", nodes, 23, VECTORS)
    x = np.random.default_rng(0).standard_normal([2, 4, 3] if shape == "[2,4,3]" else [2, 3, 4])
    x = np.abs(x) if "p = 1" in nodes else x  # ONNX's evaluator adds numbers with their signs there
    assert_same(proto, {"x": x.astype(np.float32)})


def test_layer_norm_with_its_statistics() -> None:
    outputs = "float[2,4,3] y, float[2,4,1] mean, float[2,4,1] inverse"
    assert_same(
        parsed("float[2,4,3] x", outputs, "y, mean, inverse = LayerNormalization (x, w, b)", 21, VECTORS)
    )


def test_layer_norm_has_the_form_that_is_matched() -> None:
    model = assert_same(
        parsed("float[2,4,3] x", "float[2,4,3] y", "y = LayerNormalization (x, w, b)", 21, VECTORS)
    )
    root = next(node for node in model.graphs[0] if node.op_type == "RSQRT")
    matched = match_layer_norm(root)
    assert matched.last.outputs[0] is model.graphs[0].outputs[0]
    assert matched.weight is not None
    assert matched.bias is not None
