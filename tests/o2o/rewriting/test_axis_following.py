"""One axis through reshapes, products and lookups, in both directions."""

from __future__ import annotations

import numpy as np
import pytest

from o2o.rewriting.axis_following import Factor, follow, regrouped
from o2o.rewriting.matchers import MatchFailure
from tests.o2o.graphs import INT32, Graph


@pytest.mark.parametrize(
    ("shape", "factor", "to", "expected"),
    [
        ((1, 6, 8), Factor(1), (1, 6, 2, 4), Factor(1)),
        ((1, 6, 8), Factor(1), (6, 8), Factor(0)),
        ((4, 6, 8), Factor(1), (24, 8), Factor(0, 4)),
        ((24, 8), Factor(0, 4), (4, 6, 8), Factor(1)),
        ((24, 8), Factor(0, 4), (2, 12, 8), Factor(1, 2)),
        ((6, 6), Factor(1), (6, 6), Factor(1)),
        ((6, 6), Factor(0), (36,), Factor(0)),
        ((6, 8), Factor(0), (3, 2, 8), None),
        ((6, 8), Factor(0), (2, 24), None),
    ],
)
def test_a_factor_after_a_reshape(
    shape: tuple[int, ...], factor: Factor, to: tuple[int, ...], expected: Factor | None
) -> None:
    assert regrouped(shape, factor, 6, to) == expected


def test_to_users_and_back_to_constants() -> None:
    graph = Graph("main")
    ids = graph.input("ids", [1, 6], INT32)
    x = graph.op("GATHER", [graph.constant("table", np.ones((9, 6), np.float32)), ids], [1, 6, 6], axis=0)
    steps = graph.constant("steps", np.arange(6, dtype=np.float32)[:, None])
    features = graph.constant("features", np.arange(6, dtype=np.float32))
    x = graph.op("ADD", [graph.op("MUL", [x, steps], [1, 6, 6]), features], [1, 6, 6])
    heads = graph.op("RESHAPE", [x, graph.constant("shape", np.int32([1, 6, 3, 2]))], [1, 6, 3, 2])
    order = graph.constant("order", np.int32([0, 2, 1, 3]))
    rows = graph.op("TRANSPOSE", [heads, order], [1, 3, 6, 2])
    merged = graph.op("RESHAPE", [rows, graph.constant("merged", np.int32([18, 2]))], [18, 2])
    followed = follow([(ids, Factor(1))], 6)
    assert followed.values[merged] == {Factor(0, 3)}
    assert followed.values[rows] == {Factor(2)}
    constants = {node.inputs[slot].name: at for (node, slot), at in followed.constants.items()}  # type: ignore[union-attr]
    assert constants == {"steps": {Factor(0)}}
    assert followed.resized((18, 2), followed.values[merged], 4) == (12, 2)


@pytest.mark.parametrize(
    ("op_type", "operands", "attributes", "shape", "reason"),
    [
        ("SUM", [np.int32([1])], {"keepDims": 0}, [1, 8], "SUM along the axis"),
        ("SLICE", [np.int32([0, 5, 0]), np.int32([1, 1, 8])], {}, [1, 1, 8], "it takes some of them"),
        ("RESHAPE", [np.int32([2, 3, 8])], {}, [2, 3, 8], "it divides them"),
        ("CUMSUM", [np.int32(1)], {}, [1, 6, 8], "CUMSUM along the axis"),
        ("REVERSE_V2", [np.int32([1])], {}, [1, 6, 8], "no rule is known for it"),
    ],
)
def test_operators_that_mix(
    op_type: str, operands: list[np.ndarray], attributes: dict[str, int], shape: list[int], reason: str
) -> None:
    graph = Graph("main")
    x = graph.input("x", [1, 6, 8])
    constants = [graph.constant("operand", array) for array in operands]
    graph.op(op_type, [x, *constants], shape, **attributes)
    with pytest.raises(MatchFailure, match=reason):
        follow([(x, Factor(1))], 6, least=4)


def test_the_first_rows_of_the_axis_and_of_a_table() -> None:
    graph = Graph("main")
    x, table = graph.input("x", [1, 6, 8]), graph.input("table", [1, 9, 8])
    zeros, sizes = graph.constant("zeros", np.int32([0, 0, 0])), graph.constant("sizes", np.int32([1, 6, 8]))
    first = graph.op("SLICE", [x, zeros, graph.constant("one", np.int32([1, 1, 8]))], [1, 1, 8])
    rows = graph.op("SLICE", [table, zeros, sizes], [1, 6, 8])
    y = graph.op("ADD", [x, rows], [1, 6, 8])
    followed = follow([(x, Factor(1))], 6, least=4)
    assert followed.values == {value: {Factor(1)} for value in (x, rows, y)}
    assert first not in followed.values
