"""Filters and cached exports run in this process; anything else in a shell."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from export import __main__ as export_command
from export import shell
from o2o import formats
from tests.o2o.graphs import decoder


@pytest.fixture
def no_children(monkeypatch: pytest.MonkeyPatch) -> None:
    def popen(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", popen)


def test_filters_in_this_process(
    tmp_path: Path, no_children: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "folder"
    folder.mkdir()
    formats.save(decoder(), folder / "a.circle")
    steps = ["\ngc.py < a.circle \\\n  | with.py > b.circle\n", "gc.py b.circle -o c.circle"]
    shell.run(steps, Path("folder"))
    assert formats.load(folder / "c.circle").signatures
    assert Path.cwd() == tmp_path
    shown = capsys.readouterr().err
    assert shown.startswith(steps[0])
    with pytest.raises(shell.StepFailed) as failure:
        shell.run(["gc.py missing.circle > d.circle"], folder)
    assert (failure.value.step, failure.value.code) == ("gc.py missing.circle > d.circle", 1)
    assert not (folder / "d.circle").exists()


def test_an_export_in_this_process_if_its_graphs_are_cached(
    tmp_path: Path, no_children: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(export_command, "is_cached", lambda argv: "cached" in argv)
    monkeypatch.setattr(export_command, "main", lambda argv: calls.append(argv) or 0)
    shell.run([shell.export_command(Path("cached"), 8, "", "static")], tmp_path)
    assert [argv[:3] for argv in calls] == [["cached", "-o", "."]]
    with pytest.raises(AssertionError, match="a process was started"):
        shell.run([shell.export_command(Path("other"), 8, "", "static")], tmp_path)


def test_anything_else_in_a_shell(tmp_path: Path) -> None:
    shell.run([f"{sys.executable} -c 'print(1)' | cat > out && gc.py --version >> out"], tmp_path)
    assert (tmp_path / "out").read_text().startswith("1\ngc.py ")
