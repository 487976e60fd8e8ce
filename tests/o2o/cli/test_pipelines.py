"""Pipelines are parsed as a shell reads them, and rendered so that a shell reads them again."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from o2o.cli.pipelines import Pipeline, parse, render
from o2o.errors import UsageError

WORD = st.text("abc.-=[],*$\\'\"#<>|;& \tä", min_size=1, max_size=8)


@given(
    st.lists(
        st.builds(
            Pipeline,
            st.lists(st.lists(WORD, min_size=1, max_size=3), min_size=1, max_size=3),
            st.none() | WORD,
            st.none() | WORD,
        ),
        min_size=1,
        max_size=3,
    )
)
def test_rendered_pipelines_are_parsed_again(pipelines: list[Pipeline]) -> None:
    assert parse(render(pipelines)) == pipelines


def test_a_script_of_several_lines() -> None:
    text = """
    # the guide's pipe
    fuse.attention.py < decode_.circle |
      reshape.io.py input --by_shape [1,16,30,4] '[1,16,32,4]' \\
      | gc.py > decode.circle
    merge.circles.py a.circle decode.circle; gc x && gc y
    """
    assert parse(text) == [
        Pipeline(
            [
                ["fuse.attention.py"],
                ["reshape.io.py", "input", "--by_shape", "[1,16,30,4]", "[1,16,32,4]"],
                ["gc.py"],
            ],
            "decode_.circle",
            "decode.circle",
        ),
        Pipeline([["merge.circles.py", "a.circle", "decode.circle"]]),
        Pipeline([["gc", "x"]]),
        Pipeline([["gc", "y"]]),
    ]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs a shell")
@pytest.mark.parametrize("word", ["a b", "$HOME", "x#5", "it's", '"', "\\", "[1,2]", "a;b", "ä", "#"])
def test_a_shell_reads_the_same_words(word: str) -> None:
    line = render([Pipeline([["printf", "%s", word], ["cat"]])])
    assert subprocess.run(["bash", "-c", line], capture_output=True, check=True).stdout.decode() == word


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the pipeline is empty"),
        ("  # gc", "the pipeline is empty"),
        ("gc |", "a filter is missing"),
        ("| gc", "has no meaning"),
        ("gc | | gc", "has no meaning"),
        ("gc || gc", "has no meaning"),
        ("gc &", "has no meaning"),
        ("gc >> x", "has no meaning"),
        ("gc > x | gc", "has no meaning"),
        ("gc < x < y", "has no meaning"),
        ("gc | gc < x", "only the first filter"),
        ("gc <", "a file must follow"),
        ("gc > | gc", "a file must follow"),
        ("gc 'x", "a quote without an end"),
    ],
)
def test_other_syntax_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(text)
