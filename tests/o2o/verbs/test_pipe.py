"""`o2o pipe` takes a pipeline as text or from a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from o2o import formats
from o2o.verbs.pipe import main
from tests.o2o.graphs import decoder


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    formats.save(decoder(), "raw.circle")


def test_text_and_file_are_the_same() -> None:
    Path("model.pipe").write_text("# two filters\ngc.py < raw.circle \\\n  | gc.py > second.circle\n")
    assert main(["gc < raw.circle | gc", "-o", "first.circle"]) == 0
    assert main(["-f", "model.pipe"]) == 0
    assert Path("first.circle").read_bytes() == Path("second.circle").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a pipeline in quotes, or -f FILE"),
        (["gc", "-f", "x"], "give a pipeline in quotes, or -f FILE"),
        (["-f", "nothing"], "nothing: No such file"),
        (["-f", "raw.circle"], "raw.circle: not UTF-8 text"),
        (["gc < raw.circle > x", "-o", "y"], "two outputs: x and y"),
        (["gc < nothing > x"], "gc.py: nothing: No such file"),
    ],
)
def test_refusals(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) != 0
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
