"""Attention of several texts, and of weights without NaN, is matched with the meaning of each axis."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from o2o.rewriting.attention.scores import is_finite
from o2o.rewriting.attention.sdpa import by_head, match_sdpa
from o2o.rewriting.matchers import MatchFailure
from tests.o2o.graphs import BOOL, INT32, Graph

B, K, G, T, S, H = 3, 2, 2, 5, 7, 8
N = K * G


def attention(folded: bool = False, guard: str = "") -> tuple[Graph, ir.Value]:
    """Attention of B texts; with keys repeated for their group. Returns the graph and the softmax."""
    graph = Graph("main")
    q, mask = graph.input("q", [B, N, T, H]), graph.input("mask", [B, 1, T, S])
    heads = []
    for name in ("k", "v"):
        x = graph.op("RESHAPE", [graph.input(name, [B, K, S, H]), None], [B, K, 1, S, H])
        wide = graph.op("BROADCAST_TO", [x, graph.constant("to", np.int32([B, K, G, S, H]))], [B, K, G, S, H])
        heads.append(graph.op("RESHAPE", [wide, None], [B, N, S, H]))
    batch = [B * N] if folded else [B, N]
    operands = [q, *heads]
    if folded:
        operands = [
            graph.op("RESHAPE", [x, None], [B * N, n, H]) for x, n in zip(operands, (T, S, S), strict=True)
        ]
    scores = graph.op("BATCH_MATMUL", operands[:2], [*batch, T, S], adjointRhs=True)
    if not folded:
        scores = graph.op("ADD", [scores, mask], [B, N, T, S])
    softmax = weights = graph.op("SOFTMAX", [scores], [*batch, T, S], beta=1.0)
    if guard:
        other = scores if guard == "of the scores" else weights
        test = graph.op("NOT_EQUAL", [other, other], [*batch, T, S], BOOL)
        number = graph.constant("number", np.float32(1 if guard == "to 1" else 0))
        weights = graph.op("SELECT_V2", [test, number, weights], [*batch, T, S], dtype=ir.DataType.FLOAT)
    graph.output(graph.op("BATCH_MATMUL", [weights, operands[2]], [*batch, T, H], name="y"))
    return graph, softmax


@pytest.mark.parametrize("folded", [False, True])
def test_each_axis_of_several_texts_is_known(folded: bool) -> None:
    _, softmax = attention(folded)
    match = match_sdpa(softmax.producer(), by_head, B)  # type: ignore[arg-type]
    assert match.factors.sizes == {"B": B, "K": K, "G": G, "T": T, "S": S, "H": H}
    assert [labeled.value.name for labeled in (match.q, match.k, match.v)] == ["q", "k", "v"]
    assert match.q.axes == (("B",), ("K", "G"), ("T",), ("H",))
    assert match.k.axes == match.v.axes == (("B",), ("K",), ("S",), ("H",))


def test_several_texts_are_not_taken_for_one() -> None:
    _, softmax = attention()
    with pytest.raises(MatchFailure):
        match_sdpa(softmax.producer(), by_head)  # type: ignore[arg-type]


def test_weights_that_are_no_numbers_may_become_0() -> None:
    assert not match_sdpa(attention()[1].producer(), by_head, B).zeroes_nan  # type: ignore[arg-type]
    assert match_sdpa(attention(guard="to 0")[1].producer(), by_head, B).zeroes_nan  # type: ignore[arg-type]


@pytest.mark.parametrize("guard", ["to 1", "of the scores"])
def test_other_choices_among_the_weights_are_no_attention(guard: str) -> None:
    with pytest.raises(MatchFailure):
        match_sdpa(attention(guard=guard)[1].producer(), by_head, B)  # type: ignore[arg-type]


def test_a_mask_of_choices_between_numbers_is_finite() -> None:
    graph = Graph("main")
    condition, numbers = graph.input("c", [2], BOOL), graph.input("n", [2], INT32)
    for hidden, expected in ((-3e38, True), (-np.inf, False)):
        options = [graph.constant(str(number), np.float32(number)) for number in (0, hidden)]
        mask = graph.op("SELECT_V2", [condition, *options], [2], dtype=ir.DataType.FLOAT)
        assert is_finite(graph.op("RESHAPE", [mask, None], [1, 2])) == expected
    assert is_finite(graph.op("CAST", [numbers], [2], ir.DataType.FLOAT))
    assert not is_finite(graph.input("m", [2]))
