"""Lookups."""

from __future__ import annotations

import numpy as np
import pytest

from tests.o2o.raising.evaluation import assert_same, parsed

X = "float[3,4,2] x"


@pytest.mark.parametrize(
    ("nodes", "output", "constants"),
    [
        ("y = Gather <axis = 1> (x, i)", "float[3,2,2,2] y", "int64[2,2] i = {0, 3, -1, 2}"),
        ("y = Gather (x, i)", "float[4,2] y", "int64 i = {-1}"),
        ("y = GatherElements <axis = 1> (x, i)", "float[3,1,2] y", "int64[3,1,2] i = {0, 1, 2, 3, -1, -4}"),
        ("y = GatherND (x, i)", "float[2,2] y", "int64[2,2] i = {0, 1, -1, 3}"),
        ("y = GatherND <batch_dims = 1> (x, i)", "float[3,2] y", "int64[3,1] i = {0, 1, 3}"),
        ("y = Compress <axis = 1> (x, c)", "float[3,2,2] y", "bool[4] c = {1, 0, 0, 1}"),
    ],
)
def test_lookups(nodes: str, output: str, constants: str) -> None:
    assert_same(parsed(X, output, nodes, constants=constants))


def test_computed_indices() -> None:
    proto = parsed(f"{X}, int64[2] i", "float[2,4,2] y", "y = Gather (x, i)")
    assert_same(proto, {"x": np.arange(24, dtype=np.float32).reshape(3, 4, 2), "i": np.array([2, 0])})


@pytest.mark.parametrize("flags", ["", "<axis = 1>", "<largest = 0>"])
def test_largest(flags: str) -> None:
    shape = "[3,3,2]" if "axis" in flags else "[3,4,1]"
    k = 3 if "axis" in flags else 1
    proto = parsed(
        X, f"float{shape} y, int64{shape} i", f"y, i = TopK {flags} (x, k)", constants=f"int64[1] k = {{{k}}}"
    )
    assert_same(proto)


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_one_hot(axis: int) -> None:
    """Indices may count from the end; others are none of the classes."""
    proto = parsed(
        "int64[2,2] i, float[2] v",
        "float[A,B,C] y",
        f"y = OneHot <axis = {axis}> (i, d, v)",
        constants="int64 d = {3}",
    )
    assert_same(proto, {"i": np.array([[0, 2], [-1, -9]]), "v": np.array([0.5, 2], np.float32)})
