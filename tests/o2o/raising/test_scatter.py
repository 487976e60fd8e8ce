"""Writes into a tensor: any, and the rows of a KV cache."""

from __future__ import annotations

import numpy as np
import pytest

from tests.o2o.raising.evaluation import assert_same, operators, parsed

CACHE = "float[1,2,8,4] x, float[1,2,3,4] u, int64[1] p"
FEEDS = {
    "x": np.arange(64, dtype=np.float32).reshape(1, 2, 8, 4),
    "u": -np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4),
    "p": np.array([4]),
}
WRITES = {
    "TensorScatter": "y = TensorScatter (x, u, p)",
    "ScatterND by a transpose": """
        r = Add (p, steps) i = Unsqueeze (r, one)
        xt = Transpose <perm = [2, 0, 1, 3]> (x) ut = Transpose <perm = [2, 0, 1, 3]> (u)
        s = ScatterND (xt, i, ut) y = Transpose <perm = [1, 2, 0, 3]> (s)
    """,
    "ScatterElements": """
        r = Add (p, steps) a = Reshape (r, column) i = Expand (a, shape)
        y = ScatterElements <axis = 2> (x, i, u)
    """,
}


@pytest.mark.parametrize("form", WRITES)
def test_consecutive_rows_are_one_slice(form: str) -> None:
    """The cache itself is written, not its transpose: so a runtime can write in place."""
    vectors = "int64[4] column = {1, 1, 3, 1}, int64[4] shape = {1, 2, 3, 4}"
    constants = f"int64[3] steps = {{0, 1, 2}}, int64[1] one = {{1}}, {vectors}"
    model = assert_same(parsed(CACHE, "float[1,2,8,4] y", WRITES[form], 24, constants), FEEDS)
    (update,) = (node for node in model.graphs[0] if node.op_type == "DYNAMIC_UPDATE_SLICE")
    assert update.inputs[0] is model.graphs[0].inputs[0]
    assert update.outputs[0] is model.graphs[0].outputs[0]


def test_rows_that_are_not_consecutive() -> None:
    """Every second row: no slice."""
    nodes = "r = Add (p, steps) i = Unsqueeze (r, one) y = ScatterND (x, i, u)"
    constants = "int64[3] steps = {0, 2, 4}, int64[1] one = {1}"
    proto = parsed("float[9,2] x, float[3,2] u, int64[1] p", "float[9,2] y", nodes, constants=constants)
    feeds = {"x": np.ones((9, 2), np.float32), "u": np.zeros((3, 2), np.float32), "p": np.array([1])}
    assert "DYNAMIC_UPDATE_SLICE" not in operators(assert_same(proto, feeds))


@pytest.mark.parametrize("reduction", ["none", "add"])
@pytest.mark.parametrize("op_type", ["ScatterND", "ScatterElements"])
def test_any_elements(op_type: str, reduction: str) -> None:
    nodes = f'y = {op_type} <reduction = "{reduction}"> (x, i, u)'
    shapes = "int64[2,2] i = {0, 1, 2, 0}", "float[2] u"
    if op_type == "ScatterElements":
        shapes = "int64[2,2] i = {0, 2, 1, -3}", "float[2,2] u"
    assert_same(parsed(f"float[3,4] x, {shapes[1]}", "float[3,4] y", nodes, 18, shapes[0]))
