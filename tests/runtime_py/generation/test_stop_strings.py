"""Stop strings: the text ends before the first that is complete, wherever the pieces are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from o2o.errors import UsageError
from runtime_py.generation.stop_strings import StopStrings

letters = st.text("ab\n", max_size=12)


def shown(strings: list[str], pieces: list[str]) -> tuple[list[str], bool]:
    stops = StopStrings(strings)
    given = []
    for piece in pieces:
        text, stopped = stops.push(piece)
        given.append(text)
        if stopped:
            return given, True
    return [*given, stops.flush()], False


@given(st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3), st.lists(letters, max_size=8))
def test_cut_where_the_first_is_complete(strings: list[str], pieces: list[str]) -> None:
    whole = "".join(pieces)
    matches = sorted((whole.find(one) + len(one), whole.find(one)) for one in strings if one in whole)
    given, stopped = shown(strings, pieces)
    assert stopped == bool(matches)
    assert "".join(given) == (whole[: matches[0][1]] if matches else whole)


@given(st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3), st.lists(letters, max_size=8))
def test_no_more_is_held_back_than_may_begin_one(strings: list[str], pieces: list[str]) -> None:
    stops = StopStrings(strings)
    text = ""
    for piece in pieces:
        text += piece
        _, stopped = stops.push(piece)
        if stopped:
            return
        held = text[len(text) - len(stops._held) :]
        assert stops._held == held
        assert not held or any(one.startswith(held) and one != held for one in strings)


def test_an_empty_one_is_refused() -> None:
    with pytest.raises(UsageError, match="empty"):
        StopStrings(["a", ""])
