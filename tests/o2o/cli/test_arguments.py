"""Lists of positions and names as argument types."""

from __future__ import annotations

import argparse

import pytest

from o2o.cli.arguments import id_list, name_list


def test_ids() -> None:
    assert id_list("0,2-4, 7 ,3") == [0, 2, 3, 4, 7, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is neither a number nor a range; write 0,2-4"),
        ("1,,2", "'' is neither a number nor a range"),
        ("-1", "'-1' is neither a number nor a range"),
        ("a-b", "'a-b' is neither a number nor a range"),
        ("4-2", "the range 4-2 runs backwards"),
        ("0-99999999999", "the range 0-99999999999 is longer than any graph"),
    ],
)
def test_what_are_no_ids(text: str, message: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        id_list(text)
    assert message in str(caught.value)


def test_names() -> None:
    assert name_list("a, b/c:0") == ["a", "b/c:0"]
    with pytest.raises(argparse.ArgumentTypeError):
        name_list("a,")
