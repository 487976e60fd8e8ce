"""Operators that move numbers."""

from __future__ import annotations

import numpy as np
import pytest

from o2o.errors import ModelError
from tests.o2o.raising.evaluation import assert_same, operators, parsed, raised

FORMS = [
    ("float[6,4] y", "y = Reshape (x, s)", "int64[2] s = {-1, 4}"),
    ("float[2,3,2,2] y", "y = Reshape (x, s)", "int64[4] s = {0, 0, 2, -1}"),
    ("float[2,12] y", "y = Flatten (x)", ""),
    ("float[6,4] y", "y = Flatten <axis = -1> (x)", ""),
    ("float[1,2,3,4,1] y", "y = Unsqueeze (x, a)", "int64[2] a = {0, -1}"),
    ("float[4,3,2] y", "y = Transpose (x)", ""),
    ("float[2,4,3] y", "y = Transpose <perm = [0, 2, 1]> (x)", ""),
    ("float[2,3,8] y", "y = Concat <axis = -1> (x, x)", ""),
    ("float[2,3,4] y, float[2,3,4] z", "y, z = Split <axis = 2, num_outputs = 2> (w)", ""),
    ("float[2,3,3] y, float[2,3,5] z", "y, z = Split <axis = 2> (w, s)", "int64[2] s = {3, 5}"),
    (
        "float[2,2,4] y",
        "y = Slice (x, b, e, a)",
        "int64 [1] b = {1}, int64[1] e = {9223372036854775807}, int64[1] a = {1}",
    ),
    (
        "float[2,3,2] y",
        "y = Slice (x, b, e, a, t)",
        "int64[1] b={-1}, int64[1] e={-9223372036854775807}, int64[1] a={2}, int64[1] t={-2}",
    ),
    ("float[5,2,3,4] y", "y = Expand (x, s)", "int64[4] s = {5, 1, 1, 1}"),
    ("float[2,6,4] y", "y = Tile (x, s)", "int64[3] s = {1, 2, 1}"),
    ("float[2,3,4] y", "y = Trilu <upper = 0> (x, k)", "int64 k = {1}"),
    ("float[2,5,4] y", 'y = Pad <mode = "edge"> (x, p)', "int64[6] p = {0, 1, 0, 0, 1, 0}"),
    ("float[2,3,7] y", "y = Pad (x, p, c, a)", "int64[2] p = {1, 2}, float c = {0.5}, int64[1] a = {2}"),
]


@pytest.mark.parametrize(("outputs", "nodes", "constants"), FORMS)
def test_layout(outputs: str, nodes: str, constants: str) -> None:
    nodes = f"w = Concat <axis = 2> (x, x) {nodes}" if "(w" in nodes else nodes
    assert_same(parsed("float[2,3,4] x", outputs, nodes, constants=constants))


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        ("y = Squeeze <axes = [1]> (x)", "float[2,3] y"),
        ("y = Unsqueeze <axes = [0]> (x)", "float[1,2,1,3] y"),
        ("y, z = Split <axis = 2, split = [1, 2]> (x)", "float[2,1,1] y, float[2,1,2] z"),
        ("y = Slice <starts = [1], ends = [3], axes = [2]> (x)", "float[2,1,2] y"),
        ("y = Reshape <shape = [3, 2]> (x)", "float[3,2] y"),
        ('y = Pad <pads = [0,0,1,0,0,0], mode = "reflect"> (x)', "float[2,1,4] y"),
    ],
)
def test_attributes_of_older_opsets(nodes: str, outputs: str) -> None:
    opset = 4 if "Reshape" in nodes else 9
    proto = parsed("float[2,1,3] x", outputs, nodes, opset)
    if "Reshape" in nodes or "Pad" in nodes:  # ONNX's evaluator lacks the old operator
        model = raised(proto)
        assert tuple(model.graphs[0].outputs[0].shape) == ((3, 2) if "Reshape" in nodes else (2, 1, 4))
    else:
        assert_same(proto)


def test_moves_that_cancel_vanish() -> None:
    nodes = "a = Transpose <perm = [0, 2, 1]> (x) b = Transpose <perm = [0, 2, 1]> (a) y = Neg (b)"
    assert operators(assert_same(parsed("float[2,3,4] x", "float[2,3,4] y", nodes))) == ["NEG"]


def test_outputs_are_results_of_their_own() -> None:
    """An output that is an input, a constant or another output."""
    nodes = "y = Identity (x) z = Neg (x) u = Identity (z) v = Identity (c)"
    outputs = "float[2] y, float[2] z, float[2] u, float[1] v"
    assert_same(parsed("float[2] x", outputs, nodes, constants="float[1] c = {3}"))


def test_computed_bounds_are_named() -> None:
    proto = parsed(
        "float[8] x, int64[1] b", "float[N] y", "y = Slice (x, b, e)", constants="int64[1] e = {8}"
    )
    with pytest.raises(ModelError, match=r"no counterpart in Circle: Slice y \(x float32 \[8\], .*computed"):
        raised(proto)


def test_shapes_are_computed() -> None:
    nodes = "s = Shape (x) n = Gather (s, i) m = Mul (n, two) u = Unsqueeze (m, z) y = Reshape (x, u)"
    constants = "int64 i = {1}, int64 two = {2}, int64[1] z = {0}"
    model = assert_same(parsed("float[2,4] x", "float[8] y", nodes, constants=constants))
    assert operators(model) == ["RESHAPE"]
    assert np.prod(model.graphs[0].outputs[0].shape.numpy()) == 8
