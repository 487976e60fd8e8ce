"""`python -m o2o FILTER` is the filter's command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from o2o import filters, formats
from o2o.__main__ import main
from tests.o2o.graphs import linear


@pytest.mark.parametrize(
    "name",
    [
        "rename.io.remove_prefix",
        "rename.io.remove.prefix",
        "rename_io_remove_prefix",
        "rename.io.remove_prefix.py",
    ],
)
def test_names_as_one_may_type_them(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert "usage: rename.io.remove_prefix.py" in capsys.readouterr().out


@pytest.mark.parametrize("name", filters.names())
def test_every_command_is_there_under_its_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = filters.load(name).name
    assert main([command, "--version"]) == 0
    assert capsys.readouterr().out.startswith(command)


def test_help_lists_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    for name in filters.names():
        assert filters.load(name).name.removesuffix(".py") in listed
    assert main([]) == 2


def test_an_unknown_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fuse.everything"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("python -m o2o: there is no verb or filter 'fuse.everything': ")


def test_in_a_process(tmp_path: Path, run_module: Callable[..., CompletedProcess[str]]) -> None:
    formats.save(linear(), tmp_path / "in.circle")
    outcome = run_module("o2o", "gc", tmp_path / "in.circle", "-o", tmp_path / "out.circle")
    assert (outcome.returncode, outcome.stdout) == (0, "")
    assert outcome.stderr == "gc.py: nothing to remove\n"
    assert formats.load(tmp_path / "out.circle").history[0]["filter"] == "gc.py"
