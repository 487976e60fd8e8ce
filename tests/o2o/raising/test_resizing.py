"""Resizing of images."""

from __future__ import annotations

import pytest

from o2o.errors import ModelError
from tests.o2o.raising.evaluation import assert_same, parsed, raised

DOUBLE = "float[4] s = {1, 1, 2, 2}"


@pytest.mark.parametrize(
    "attributes",
    [
        'mode = "nearest"',
        'mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"',
        'mode = "linear"',
        'mode = "linear", coordinate_transformation_mode = "align_corners"',
        'mode = "linear", coordinate_transformation_mode = "asymmetric"',
    ],
)
def test_resizing(attributes: str) -> None:
    nodes = f"y = Resize <{attributes}> (x, , s)"
    assert_same(parsed("float[1,2,3,4] x", "float[1,2,6,8] y", nodes, constants=DOUBLE))


def test_sizes_instead_of_scales() -> None:
    nodes = 'y = Resize <mode = "linear"> (x, , , n)'
    assert_same(parsed("float[1,2,4,4] x", "float[1,2,6,3] y", nodes, constants="int64[4] n = {1, 2, 6, 3}"))


@pytest.mark.parametrize(
    ("attributes", "scales"), [('mode = "cubic"', "1, 1, 2, 2"), ('mode = "linear"', "1, 1, 0.6, 0.6")]
)
def test_what_circle_computes_otherwise_is_named(attributes: str, scales: str) -> None:
    proto = parsed(
        "float[1,2,4,4] x",
        "float y",
        f"y = Resize <{attributes}> (x, , s)",
        constants=f"float[4] s = {{{scales}}}",
    )
    with pytest.raises(ModelError, match="no counterpart in Circle: Resize y"):
        raised(proto)
