"""Reductions, running sums and softmax."""

from __future__ import annotations

import numpy as np
import pytest

from tests.o2o.raising.evaluation import assert_same, on_litert, operators, parsed, raised

REDUCTIONS = ("Mean", "Sum", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSumExp")


@pytest.mark.parametrize("kind", REDUCTIONS)
@pytest.mark.parametrize("keep", [0, 1])
def test_reductions(kind: str, keep: int) -> None:
    shape = "[2,1,4]" if keep else "[2,4]"
    nodes = f"y = Reduce{kind} <keepdims = {keep}> (x, a)"
    assert_same(parsed("float[2,3,4] x", f"float{shape} y", nodes, constants="int64[1] a = {-2}"))


def test_axes_as_an_attribute_and_none() -> None:
    assert_same(parsed("float[2,3] x", "float[2] y", "y = ReduceMean <axes = [1], keepdims = 0> (x)", 11))
    assert_same(parsed("float[2,3] x", "float[1,1] y", "y = ReduceSum (x)"))
    model = assert_same(
        parsed("float[2,3] x", "float[2,3] y", "z = ReduceSum <noop_with_empty_axes = 1> (x) y = Neg (z)")
    )
    assert operators(model) == ["NEG"]


@pytest.mark.parametrize("kind", ["Max", "Min"])
def test_extremes_of_conditions(kind: str) -> None:
    nodes = f"y = Reduce{kind} <keepdims = 0> (x, a)"
    assert_same(parsed("bool[2,3] x", "bool[2] y", nodes, constants="int64[1] a = {1}"))


@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize(("axis", "opset"), [(-1, 21), (1, 21), (1, 11), (2, 11)])
def test_softmax(op_type: str, axis: int, opset: int) -> None:
    """Before opset 13 all axes from the given one are one axis."""
    proto = parsed("float[2,3,4] x", "float[2,3,4] y", f"y = {op_type} <axis = {axis}> (x)", opset)
    if (axis, opset) != (1, 11):
        assert_same(proto)
        return
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    y = on_litert(raised(proto), {"x": x})["y"]
    total = np.exp(x).sum((1, 2), keepdims=True)
    wanted = np.exp(x) / total if op_type == "Softmax" else x - np.log(total)
    np.testing.assert_allclose(y, wanted, rtol=1e-5)


@pytest.mark.parametrize("flags", ["", "<exclusive = 1>", "<reverse = 1>"])
def test_running_sums(flags: str) -> None:
    assert_same(
        parsed("float[2,3] x", "float[2,3] y", f"y = CumSum {flags} (x, a)", constants="int64 a = {1}")
    )


@pytest.mark.parametrize(
    "flags", ["<axis = 1>", "<axis = 0, keepdims = 0>", "<axis = 1, select_last_index = 1>"]
)
@pytest.mark.parametrize("op_type", ["ArgMax", "ArgMin"])
def test_places_of_extremes(op_type: str, flags: str) -> None:
    assert_same(
        parsed(
            "float[2,3] x",
            "int64[N] y" if "keepdims" in flags else "int64[N,M] y",
            f"y = {op_type} {flags} (x)",
        ),
        {"x": np.array([[1, 3, 3], [5, 2, 2]], np.float32)},
    )
