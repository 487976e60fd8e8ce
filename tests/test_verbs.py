"""What the verbs of `o2o` have in common: they are found, explained with examples, and named in messages."""

from __future__ import annotations

import itertools
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from o2o import filters, verbs
from o2o.__main__ import main
from o2o.cli.arguments import Parser

VERBS = verbs.verbs()
NAMES = [verb.name for verb in VERBS]


def run(*arguments: str) -> int:
    try:
        return main([*arguments], "o2o")
    except SystemExit as exit_:  # --help
        return int(exit_.code or 0)


@pytest.mark.parametrize("verb", VERBS, ids=NAMES)
def test_each_has_a_line_of_its_own(verb: verbs.Verb) -> None:
    assert 10 < len(verb.summary) < 66
    assert verb.summary[0].isupper()


@pytest.mark.parametrize("verb", VERBS, ids=NAMES)
def test_each_explains_itself_with_examples(verb: verbs.Verb, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        verb.parser().parse_args(["--help"])
    assert "example" in capsys.readouterr().out
    assert run(verb.name, "--help") == 0
    assert capsys.readouterr().out.startswith(f"usage: o2o {verb.name} ")


@pytest.mark.parametrize("verb", VERBS, ids=NAMES)
def test_its_examples_are_right(verb: verbs.Verb) -> None:
    parser = verb.parser()
    assert isinstance(parser, Parser)
    assert parser.examples
    for example in parser.examples:
        words = shlex.split(example, comments=True)
        program, *words = itertools.takewhile(lambda word: word not in ("<", "|", ">"), words)
        if program == "o2o":
            assert words.pop(0) == verb.name
        parser.parse_args(words)


@pytest.mark.parametrize("verb", VERBS, ids=NAMES)
def test_a_wrong_flag_is_one_line_with_a_suggestion(
    verb: verbs.Verb, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(verb.name, "--debgu") == 2
    error = capsys.readouterr().err
    assert (
        error
        == f"o2o {verb.name}: unrecognized arguments: --debgu: did you mean --debug? (--help explains)\n"
    )


def test_the_help_fits_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 80


def test_help_is_a_word_too(capsys: pytest.CaptureFixture[str]) -> None:
    for words, flag in ((["help"], ["--help"]), (["help", "run"], ["run", "--help"])):
        assert run(*words) == 0
        text = capsys.readouterr().out
        assert run(*flag) == 0
        assert capsys.readouterr().out == text


def test_filters_run_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("gc", "gc.py"):
        assert run(name, "--help") == 0
        assert capsys.readouterr().out.startswith(f"usage: o2o {name} ")
        assert run(name, "--chek") == 2
        assert capsys.readouterr().err.startswith(
            f"o2o {name}: unrecognized arguments: --chek: did you mean --check?"
        )


@pytest.mark.parametrize(
    ("word", "nearest"),
    [
        ("prplexity", "perplexity"),
        ("fuse.atention", "fuse.attention"),
        ("gcc.py", "gc"),
        ("filter", "filters"),
    ],
)
def test_an_unknown_word_has_a_suggestion(
    word: str, nearest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(word) == 2
    assert capsys.readouterr().err == f"o2o: there is no verb or filter {word!r}: did you mean {nearest}?\n"


def test_a_word_that_is_near_to_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("xyzzyx") == 2
    assert capsys.readouterr().err == "o2o: there is no verb or filter 'xyzzyx': `o2o --help` lists them\n"


def test_the_overview_imports_no_verb() -> None:
    modules = [*(verb.module for verb in VERBS), "numpy", "onnx_ir", "torch"]
    program = (
        "import sys\nfrom o2o.__main__ import main\n"
        f"assert main(['--help'], 'o2o') == 0\nprint([m for m in {modules!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_filter_has_an_example_that_names_it() -> None:
    for name in filters.names():
        filter_ = filters.load(name)
        assert filter_().parser().examples == (filter_.usage_example,)
        assert filter_.name in filter_.usage_example


def test_existing_spellings_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from runtime_py import run as run_module

    assert run_module.main([str(tmp_path / "none")]) != 0
    assert capsys.readouterr().err.startswith("run: ")
    assert run("run", str(tmp_path / "none")) != 0
    assert capsys.readouterr().err.startswith("o2o run: ")
    assert main(["gc", "--chek"]) == 2
    assert capsys.readouterr().err.startswith("gc.py: ")
