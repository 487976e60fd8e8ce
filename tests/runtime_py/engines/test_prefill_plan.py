"""The choice of chunks: every position once it is needed, none skipped, nothing beyond the capacity."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runtime_py.engines.prefill_plan import Chunk, plan_chunks, split_evenly


@st.composite
def problems(draw) -> dict:
    capacity = draw(st.integers(1, 300))
    lengths = st.integers(1, capacity)
    return {
        "length": draw(st.integers(0, capacity)),
        "capacity": capacity,
        "anywhere": draw(st.sets(lengths, min_size=1, max_size=4)),
        "at_start": draw(st.sets(st.integers(1, 2 * capacity), max_size=2)),
    }


@given(problems())
@example({"length": 10, "capacity": 10, "anywhere": {4}, "at_start": set()})  # S is no multiple of T
@example({"length": 7, "capacity": 8, "anywhere": {1}, "at_start": {1}})
@example({"length": 8, "capacity": 8, "anywhere": {1}, "at_start": {16}})
def test_the_caches_hold_the_prompt(problem):
    prompt, capacity = problem["length"], problem["capacity"]
    rows: list[object] = ["old"] * capacity
    runs = plan_chunks(**problem)
    for run in runs:
        assert all(row == position for position, row in enumerate(rows[: run.start]))  # what attention sees
        assert 0 < run.stop - run.start <= run.length
        written = [*range(run.start, run.stop)]
        if run.length in problem["anywhere"]:
            written += ["padding"] * (run.start + run.length - run.stop)
        else:
            assert run.start == 0
            assert run.length in problem["at_start"]
        rows[run.start : run.start + len(written)] = written
        assert len(rows) == capacity
    assert rows[:prompt] == [*range(prompt)]
    assert [run.stop for run in runs][-1:] == [prompt] * bool(runs)


@given(problems())
def test_no_run_more_than_it_takes(problem):
    *full, last = plan_chunks(**problem) or [Chunk(0, 0, 0)]
    largest = max(problem["anywhere"])
    for number, run in enumerate(full):
        assert run.stop - run.start == run.length
        assert run.length == largest or number == 0
        assert run.start == sum(run.length for run in full[:number])
    left = problem["length"] - sum(run.length for run in full)
    usable = problem["anywhere"] | (set() if full else problem["at_start"])
    assert not [length for length in usable if left <= length < last.length]


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        (1, [(1, 0, 1)]),
        (2, [(4, 0, 2)]),
        (4, [(4, 0, 4)]),
        (5, [(8, 0, 5)]),
        (9, [(8, 0, 8), (1, 8, 9)]),
        (10, [(8, 0, 8), (4, 8, 10)]),
        (17, [(8, 0, 8), (8, 8, 16), (1, 16, 17)]),
        (18, [(8, 0, 8), (8, 8, 16), (4, 14, 18)]),  # not to 20
    ],
)
def test_smallest_that_fits_else_the_largest(prompt, wanted):
    runs = plan_chunks(prompt, 18, [1, 8, 4])
    assert [(run.length, run.start, run.stop) for run in runs] == wanted


def test_what_only_reads_the_beginning():
    assert plan_chunks(6, 20, [1], [4]) == [Chunk(4, 0, 4), Chunk(1, 4, 5), Chunk(1, 5, 6)]
    assert plan_chunks(6, 20, [1, 8], [4]) == [Chunk(8, 0, 6)]
    assert plan_chunks(20, 20, [1, 8], [16]) == [Chunk(16, 0, 16), Chunk(8, 12, 20)]
    assert plan_chunks(7, 8, [1], [10]) == [Chunk(10, 0, 7)]


def test_a_prompt_beyond_the_capacity():
    with pytest.raises(ValueError, match="9 positions of 8"):
        plan_chunks(9, 8, [1, 4])


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 9))
def test_an_even_split_covers_each_position_once(start: int, count: int, size: int) -> None:
    chunks = split_evenly(start, start + count, size)
    assert [p for chunk in chunks for p in range(chunk.start, chunk.stop)] == [*range(start, start + count)]
    assert all(chunk.length == chunk.stop - chunk.start <= size for chunk in chunks)
