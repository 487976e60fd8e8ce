"""history.model.py prints pipelines that make the model again, and --replay runs them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from o2o import formats
from o2o.cli.pipelines import parse
from o2o.filters import pipeline
from o2o.filters.history_model import main
from tests.o2o.graphs import decoder
from tests.o2o.language_model_graphs import language_model

TEXT = """
gc < raw.circle | reorder.output --by_id 1,0 > a.circle
merge.circles a.circle language.circle --sig-names 'a;b;c;d' | gc |
  rename.io input input_ids='x y' > model.circle
"""


@pytest.fixture(autouse=True)
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    formats.save(decoder(), "raw.circle")
    formats.save(language_model(), "language.circle")
    assert pipeline.run(parse(TEXT), quiet=True) == 0


def test_the_script_makes_the_same_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model.circle"]) == 0
    script = capsys.readouterr().out
    assert "merge.circles.py a.circle language.circle --sig-names 'a;b;c;d'" in script
    expected = Path("model.circle").read_bytes()
    Path("raw.circle").rename("a_.circle")  # the name that the script gives it
    Path("model.circle").unlink()
    assert pipeline.run(parse(script), quiet=True) == 0
    assert Path("model.circle").read_bytes() == expected
    assert subprocess.run(["bash", "-n"], input=script.encode(), check=False).returncode == 0


def test_replay_finds_the_inputs_by_fingerprint(capsys: pytest.CaptureFixture[str]) -> None:
    Path("raw.circle").rename("other")
    assert main(["model.circle", "--replay", "language.circle", "other"]) == 0
    assert capsys.readouterr().out == "the replay of 5 filters gives the same model\n"


def test_replay_begins_with_a_result_of_the_first_filters(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        pipeline.run(parse("gc < raw.circle > first; reorder.output --by_id 1,0 < first > out"), quiet=True)
        == 0
    )
    assert main(["out", "--replay", "first"]) == 0
    assert capsys.readouterr().out == "the replay of 1 filter gives the same model\n"


def test_replay_names_the_filter_whose_result_differs(capsys: pytest.CaptureFixture[str]) -> None:
    changed = formats.load("model.circle")
    changed.graphs[0].name = "changed"
    formats.save(changed, "changed.circle")
    assert main(["changed.circle", "--replay", "language.circle", "raw.circle"]) == 1
    assert "the result of rename.io.py differs" in capsys.readouterr().err
    changed.history[-1]["input"] = f"sha256:{1:064}"
    formats.save(changed, "changed.circle")
    assert main(["changed.circle", "--replay", "language.circle", "raw.circle"]) == 1
    assert "the result of gc.py, which rename.io.py reads, differs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["raw.circle"], "it has no history"),
        (
            ["model.circle", "--replay", "language.circle"],
            "none of the files is the input a_.circle (sha256:",
        ),
        (["model.circle", "--replay", "language.circle", "raw.circle", "a.circle"], "a.circle is no input"),
        (["model.circle", "--json", "--replay", "raw.circle"], "give one of them"),
        (["model.circle", "--replay", "nothing"], "nothing: No such file"),
    ],
)
def test_refusals(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) != 0
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
