"""Where weights leave their marks in a graph, and the first tensor that differs."""

from __future__ import annotations

import numpy as np
import pytest

from tinyllama.verification.trace import (
    Difference,
    Operator,
    differences,
    first_difference,
    heads_as_rows,
    rows,
    traced_tensors,
)


def test_what_reads_a_weight_gives_what_its_module_gives() -> None:
    graph = [
        Operator("h", ("ids", "table"), False),
        Operator("q", ("h", "wq"), True),
        Operator("n", ("wn", "q"), False),
    ]
    names = {"table": "embed.weight", "wq": "layers.0.q.weight", "wn": "layers.0.norm.weight"}

    found = traced_tensors(graph, names)

    assert found == {"embed": "h", "layers.0.q.input": "h", "layers.0.q": "q", "layers.0.norm": "n"}


def test_a_bias_that_comes_later_ends_its_module() -> None:
    graph = [Operator("y", ("x", "w"), True), Operator("z", ("y", "b"), False)]

    assert traced_tensors(graph, {"w": "q.weight", "b": "q.bias"}) == {"q.input": "x", "q": "z"}


def test_what_is_made_of_weights_alone_stands_for_them() -> None:
    """As a weight made float32 again, or 1 + it; a constant beside it changes nothing."""
    graph = [
        Operator("w32", ("w",), False),
        Operator("w1", ("one", "w32"), False),
        Operator("y", ("x", "w1"), False),
    ]

    assert traced_tensors(graph, {"w": "norm.weight"}, {"one"}) == {"norm": "y"}


def test_of_a_tied_weight_the_first_reader_counts() -> None:
    graph = [Operator("h", ("ids", "w"), False), Operator("logits", ("h", "w"), True)]

    assert traced_tensors(graph, {"w": "embed.weight"}) == {"embed": "h"}


def test_rows_and_heads() -> None:
    keys = np.arange(24.0).reshape(1, 2, 3, 4)  # [B, K, T, H]

    assert rows(np.zeros((1, 5, 7))).shape == rows(np.zeros((5, 7))).shape == (5, 7)
    np.testing.assert_array_equal(heads_as_rows(keys)[1], [4, 5, 6, 7, 16, 17, 18, 19])
    np.testing.assert_array_equal(heads_as_rows(keys.transpose(0, 2, 1, 3), "BTNH"), heads_as_rows(keys))


def test_the_first_difference_beyond_the_limit_is_named() -> None:
    expected = {
        "a": np.ones((2, 3)),
        "b": np.full((2, 3), 4.0),
        "c": np.ones((2, 3)),
        "only here": np.ones((1, 1)),
    }
    found = {"a": np.ones((2, 3)) + 1e-6, "b": np.full((2, 3), 4.2), "c": np.zeros((2, 3))}

    diffs = differences(expected, found)

    assert [item.name for item in diffs] == ["a", "b", "c"]
    assert (diffs[1].absolute, diffs[1].relative) == (
        pytest.approx(0.2),
        pytest.approx(0.05),
    )
    assert first_difference(diffs, 1e-3).startswith("the first tensor that differs is b, by 2.0e-01")
    assert "no intermediate tensor differs by more" in first_difference(diffs[:1], 1e-3)
    assert "the largest difference: a, by 1.0e-06" in first_difference(diffs[:1], 1e-3)
    assert first_difference([], 1e-3) == "the traces have no tensor in common"


def test_the_last_rows_are_compared_and_no_number_is_far_off() -> None:
    expected = {"a": np.array([[9.0], [1.0]]), "b": np.array([[1.0]])}

    diffs = differences(expected, {"a": np.array([[1.0]]), "b": np.array([[np.nan]])})

    assert [item.relative for item in diffs] == [0.0, np.inf]


def test_layer() -> None:
    assert Difference("model.layers.12.mlp.up_proj", 0, 0).layer == 12
    assert Difference("lm_head", 0, 0).layer is None
