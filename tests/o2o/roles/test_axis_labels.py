"""Labels of axes through reshapes and transposes, and the layout they give."""

from __future__ import annotations

import numpy as np
import pytest

from o2o.roles.axis_labels import after, before, layout_of, regroup
from tests.o2o.graphs import Graph

BNTH = ("B", "N", "T", "H")


@pytest.mark.parametrize(
    ("labels", "shape", "other", "result"),
    [
        (BNTH, (1, 2, 5, 4), (2, 5, 4), ("N", "T", "H")),
        (("N", "T", "H"), (2, 5, 4), (1, 2, 5, 4), BNTH),
        (BNTH, (1, 6, 5, 4), (1, 2, 3, 5, 4), ("B", "N", "N", "T", "H")),
        (("B", "N", "N", "T", "H"), (1, 2, 3, 5, 4), (1, 6, 5, 4), BNTH),
        (BNTH, (1, 2, 5, 4), (1, 10, 4), ("B", None, "H")),
        (BNTH, (1, 2, 5, 4), (3, 5), None),
        (BNTH, (1, 1, 5, 4), (5, 4), ("T", "H")),
    ],
)
def test_reshape(labels, shape, other, result) -> None:
    assert regroup(labels, shape, other) == result


def test_transposes_in_both_directions() -> None:
    graph = Graph("main")
    x = graph.input("x", [1, 5, 2, 4])
    y = graph.op("TRANSPOSE", [x, graph.constant("order", np.int32([0, 2, 3, 1]))], [1, 2, 4, 5])
    (node,) = graph.ir
    assert before(node, 0, ("B", "N", "H", "T")) == ("B", "T", "N", "H")
    assert after(node, 0, ("B", "T", "N", "H")) == ("B", "N", "H", "T")
    graph.output(y)


def test_an_operator_that_mixes_axes_has_no_labels() -> None:
    graph = Graph("main")
    x = graph.input("x", [2, 3])
    graph.output(graph.op("FULLY_CONNECTED", [x, graph.constant("w", np.eye(3, dtype=np.float32))], [2, 3]))
    (node,) = graph.ir
    assert before(node, 0, ("T", "H")) is None


@pytest.mark.parametrize(
    ("labels", "shape", "layout"),
    [
        (BNTH, (1, 2, 5, 4), "BNTH"),
        (("B", "T", "N", "H"), (1, 5, 2, 4), "BTNH"),
        (("B", "N", "H", "T"), (1, 2, 4, 5), "BNHT"),
        (("B", "B", "T", "H"), (1, 1, 5, 4), "BNTH"),
        (("B", None, "T", "H"), (1, 2, 5, 4), "BNTH"),
        (("N", "N", "T", "H"), (2, 2, 5, 4), None),
        (("B", "N", "T", "T"), (1, 2, 5, 4), None),
        (("N", "T", "H"), (2, 5, 4), None),
        (None, (1, 2, 5, 4), None),
    ],
)
def test_layout(labels, shape, layout) -> None:
    assert layout_of(labels, shape) == layout
