"""Pools, and the norm over neighboring channels."""

from __future__ import annotations

import pytest

from tests.o2o.raising.evaluation import assert_same, parsed


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize(
    "attributes",
    [
        "kernel_shape = [2, 3]",
        "kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]",
        "kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1",
        'kernel_shape = [3, 2], auto_pad = "SAME_UPPER", strides = [2, 1]',
    ],
)
def test_pools(kind: str, attributes: str) -> None:
    assert_same(parsed("float[2,3,7,6] x", "float[A,B,C,D] y", f"y = {kind} <{attributes}> (x)"))


def test_padding_that_counts() -> None:
    attributes = "kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1"
    assert_same(parsed("float[1,2,5,5] x", "float[A,B,C,D] y", f"y = AveragePool <{attributes}> (x)"))


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
def test_signals(kind: str) -> None:
    attributes = "kernel_shape = [3], strides = [2]"
    assert_same(parsed("float[2,3,8] x", "float[A,B,C] y", f"y = {kind} <{attributes}> (x)"))


@pytest.mark.parametrize("nodes", ["GlobalAveragePool (x)", "GlobalMaxPool (x)", "LRN <size = 3> (x)"])
def test_whole_images_and_channels(nodes: str) -> None:
    tolerance = 1e-3 if "LRN" in nodes else 1e-5  # LiteRT approximates the power
    assert_same(parsed("float[2,5,4,3] x", "float[A,B,C,D] y", f"y = {nodes}"), tolerance=tolerance)
