"""Which graphs a package is made of."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.graph_specs import GraphSpec, graph_specs
from o2o.errors import UsageError


def test_the_guide() -> None:
    assert graph_specs(32) == [
        GraphSpec("prefill", "prefill.circle", 32, None, context=32),
        GraphSpec("decode", "decode_.circle", 1, 30, "concat", 32),
    ]
    assert graph_specs(1024, ()) == [
        GraphSpec("prefill", "prefill.circle", 1024, None, context=1024),
        GraphSpec("decode", "decode_.circle", 1, 1022, "concat", 1024),
    ]


def test_several_prefills_shortest_first() -> None:
    assert graph_specs(300, [128, 64]) == [
        GraphSpec("prefill_64", "prefill_64_.circle", 64, 300, context=300),
        GraphSpec("prefill_128", "prefill_128_.circle", 128, 300, context=300),
        GraphSpec("decode", "decode_.circle", 1, 298, "concat", 300),
    ]


def test_without_fusing_nothing_is_left_to_do() -> None:
    *prefills, decode = graph_specs(300, None, "static")
    assert [spec.file for spec in prefills] == [
        "prefill_64.circle",
        "prefill_128.circle",
        "prefill_256.circle",
    ]
    assert decode == GraphSpec("decode", "decode.circle", 1, 300, "static", 300)


@given(st.integers(3, 5000))
def test_lengths_that_nobody_gave_fit(max_length: int) -> None:
    *prefills, decode = graph_specs(max_length)
    assert all(spec.tokens <= max_length for spec in prefills)
    assert [spec.capacity for spec in prefills] == [max_length] * len(prefills) or max_length < 64
    assert decode.capacity == max_length - 2
    assert len({spec.file for spec in (*prefills, decode)}) == len(prefills) + 1


@pytest.mark.parametrize(
    ("max_length", "lengths", "cache", "complaint"),
    [
        (2, None, "concat", "--max-length 2: give at least 3 with --cache concat"),
        (0, None, "static", "at least 1 with --cache static"),
        (100, [64, 128], "concat", "128 tokens do not fit into --max-length 100"),
        (100, [0], "concat", "0 tokens do not fit"),
        (100, [64, 8, 64], "static", "8,64,64: give each length once"),
    ],
)
def test_lengths_that_make_no_package(max_length: int, lengths, cache, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        graph_specs(max_length, lengths, cache)
