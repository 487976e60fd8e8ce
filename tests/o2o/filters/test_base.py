"""What filters share: arguments in any order, and a history that does not depend on where files lie."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from o2o import formats
from o2o.errors import ModelError
from o2o.filters.base import Filter
from o2o.filters.remove_io import RemoveIo
from o2o.model import Model
from tests.o2o.graphs import linear


class Talker(Filter):
    """Say something.

    x --- y  =>  x --- y
    """

    name = "talker.py"
    usage_example = "talker.py < a > b"
    input_formats = ("circle",)
    fail = False

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--flag")

    def apply(self, model: Model, args: argparse.Namespace) -> None:
        self.log("one")
        self.log("two")
        if self.fail:
            raise ModelError("no")


@pytest.fixture
def source(tmp_path: Path) -> str:
    formats.save(linear(), tmp_path / "in.circle")
    return str(tmp_path / "in.circle")


def history(path: Path) -> list[str]:
    found: list[str] = formats.load(path).history[-1]["arguments"]
    return found


@pytest.mark.parametrize("output", [["-o", "OUT"], ["--output", "OUT"], ["--output=OUT"], ["-oOUT"]])
@pytest.mark.parametrize("where", ["before", "between", "after"])
def test_arguments_in_any_order(source: str, tmp_path: Path, output: list[str], where: str) -> None:
    target = tmp_path / "out.circle"
    output_arguments = [text.replace("OUT", str(target)) for text in output]
    end, selector = "output", ["--keep_by_name", "z"]
    arguments = {
        "before": [*output_arguments, "--debug", end, *selector, source],
        "between": [end, source, *output_arguments, *selector],
        "after": [*selector, end, source, *output_arguments],
    }[where]
    assert RemoveIo.main(arguments) == 0
    assert sorted(history(target)) == sorted([end, *selector]), "neither files nor --debug"


def test_an_argument_like_the_file_is_still_told(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").write_bytes(Path(source).read_bytes())
    assert Talker.main(["--flag", "x", "x", "-o", "out"]) == 0
    assert history(tmp_path / "out") == ["--flag", "x"]


def test_history_has_one_spelling_of_a_flag(source: str, tmp_path: Path) -> None:
    for flag in ("--keep_by_name", "--keep-by-name"):
        assert RemoveIo.main(["output", flag, "z", source, "-o", str(tmp_path / "out")]) == 0
        assert history(tmp_path / "out") == ["output", "--keep_by_name", "z"]


def test_flags_are_not_guessed_from_their_beginning(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert Talker.main(["--fl", "x", source]) == 2
    assert capsys.readouterr().err.startswith("talker.py: unrecognized arguments: --fl")


def test_what_it_says_comes_with_success(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Talker.main([source, "-o", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().err == "talker.py: one\ntalker.py: two\n"
    monkeypatch.setattr(Talker, "fail", True)
    assert Talker.main([source, "-o", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == "talker.py: no\n"


def test_history_grows_in_order(source: str, tmp_path: Path) -> None:
    for flag in ("a", "b"):
        assert Talker.main(["--flag", flag, source, "-o", source]) == 0
    model = formats.load(source)
    assert [entry["arguments"] for entry in model.history] == [["--flag", "a"], ["--flag", "b"]]
    assert model.history[1]["input"] != model.history[0]["input"]
