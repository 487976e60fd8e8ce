"""Messages count, list and quote."""

from __future__ import annotations

import pytest

from o2o.cli.text import counted, listed, one_line


def test_counted() -> None:
    assert [counted(number, "input") for number in (0, 1, 1496)] == ["0 inputs", "1 input", "1,496 inputs"]


def test_long_lists_are_shortened() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed([f"x{k}" for k in range(15)]).endswith("x11, and 3 more")


def test_a_repeated_name_is_listed_once() -> None:
    assert listed(["input_ids", "input_ids", "cache_position"]) == "input_ids, cache_position"


@pytest.mark.parametrize(
    ("text", "line"),
    [("a b", "a b"), ("a\n  b", "a b"), ("abcdef", "abcde..."), ("", ""), ("a bcd", "a bcd")],
)
def test_a_quotation_is_one_short_line(text: str, line: str) -> None:
    assert one_line(text, 5) == line
