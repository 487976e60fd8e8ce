"""The parser of every command, and argument types."""

from __future__ import annotations

import argparse

import pytest

from o2o.cli.arguments import Parser, id_list, name_list, number_list, positive_int, shape
from o2o.errors import UsageError


@pytest.fixture
def parser() -> Parser:
    parser = Parser(prog="tool.py")
    parser.add_argument("file", nargs="?")
    parser.add_argument("-o", "--output")
    parser.add_argument("--keep_by_name", type=name_list)
    parser.add_argument("--max-length", type=positive_int)
    parser.add_mutually_exclusive_group().add_argument("--sig-names")
    parser.add_argument("--lengths", type=positive_int, nargs="+")
    parser.add_argument("--forms", choices=("a", "b", "c"), nargs="*")
    parser.add_argument("--by_shape", type=shape, nargs=2, action="append")
    return parser


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--keep-by-name", "a,b"], {"keep_by_name": ["a", "b"]}),
        (["--keep_by_name=a-b,c_d"], {"keep_by_name": ["a-b", "c_d"]}),
        (["--max_length", "3", "in"], {"max_length": 3, "file": "in"}),
        (["--sig_names=a;b"], {"sig_names": "a;b"}),
        (["--lengths", "1,2", "3"], {"lengths": [1, 2, 3]}),
        (["--lengths=1,2"], {"lengths": [1, 2]}),
        (["--lengths", "1,2", "-oa,b"], {"lengths": [1, 2], "output": "a,b"}),
        (["--lengths", "1,2", "--output", "a,b", "c,d"], {"lengths": [1, 2], "output": "a,b", "file": "c,d"}),
        (["--forms", "a,c", "-o", "x"], {"forms": ["a", "c"], "output": "x"}),
        (["--by-shape", "[1,2]", "[2,1]", "in"], {"by_shape": [[(1, 2), (2, 1)]], "file": "in"}),
        (["--", "--max_length"], {"file": "--max_length"}),
    ],
)
def test_flags(parser: Parser, arguments: list[str], expected: dict[str, object]) -> None:
    args = vars(parser.parse_args(arguments))
    assert {name: value for name, value in args.items() if value is not None} == expected
    if "--" not in arguments:  # argparse drops it too early
        assert vars(parser.parse_intermixed_args(arguments)) == args


def test_help_shows_the_declared_spelling(parser: Parser) -> None:
    text = parser.format_help()
    assert "--keep_by_name" in text
    assert "--keep-by-name" not in text


def test_an_unknown_flag_is_shown_as_it_was_typed(parser: Parser) -> None:
    with pytest.raises(UsageError, match="unrecognized arguments: --no_such-flag"):
        parser.parse_args(["--no_such-flag"])


def test_a_whole_text_in_the_wrong_place_is_shortened(parser: Parser) -> None:
    with pytest.raises(UsageError) as caught:
        parser.parse_args(["in", "once\nupon a time " * 1000])
    assert str(caught.value).startswith("unrecognized arguments: once upon a time once")
    assert len(str(caught.value)) < 400


def test_numbers() -> None:
    assert number_list("64, 128,256") == [64, 128, 256]
    assert number_list("") == []
    with pytest.raises(argparse.ArgumentTypeError, match="not a list of numbers such as 64,128,256"):
        number_list("64;128")
    for text in ("64,,128", "64,", ","):
        with pytest.raises(argparse.ArgumentTypeError, match="not a list of numbers"):
            number_list(text)
    assert positive_int("7") == 7
    for text in ("0", "-1", "x", "1.5"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is not a positive integer"):
            positive_int(text)


def test_messages_of_plain_numbers() -> None:
    parser = Parser(prog="tool.py")
    parser.add_argument("--seed", type=int)
    parser.add_argument_group("sampling").add_argument("--temperature", type=float)
    with pytest.raises(UsageError, match="argument --seed: 'x' is not an integer"):
        parser.parse_args(["--seed", "x"])
    with pytest.raises(UsageError, match="argument --temperature: 'hot' is not a number"):
        parser.parse_args(["--temperature", "hot"])
    assert vars(parser.parse_args(["--seed=3", "--temperature=0.5"])) == {"seed": 3, "temperature": 0.5}


def test_names_and_ids() -> None:
    assert name_list("a, b") == ["a", "b"]
    with pytest.raises(argparse.ArgumentTypeError, match="'a,,b' has an empty name; write a,b"):
        name_list("a,,b")
    assert id_list("0, 2-4") == [0, 2, 3, 4]
    for text, reason in [
        ("x", "neither a number nor a range"),
        ("4-2", "is descending"),
        ("0-9999999", "longer"),
    ]:
        with pytest.raises(argparse.ArgumentTypeError, match=reason):
            id_list(text)


def test_shapes() -> None:
    assert shape("[1,16, 30,4]") == (1, 16, 30, 4)
    assert shape("[]") == ()
    for text in ("1,2", "[1,2", "[-1]", "[a]"):
        with pytest.raises(argparse.ArgumentTypeError, match="is not a shape such as"):
            shape(text)
