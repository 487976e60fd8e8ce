"""A command fails for a model in some manner: exit code, signal, time, text."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from o2o.errors import UsageError
from o2o.reduction.failing_command import FailingCommand


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-S", "-c", code, *arguments]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "a model"
    path.write_bytes(b"bug")
    return path


def test_the_file_in_an_argument(model: Path) -> None:
    failing = FailingCommand(
        python("import sys; sys.exit(len(open(sys.argv[1][5:]).read()))", "file={}"), None, 60
    )
    assert failing.watch(model).code == 3
    assert failing.still_fails(model)
    model.write_bytes(b"other bug")
    assert not failing.still_fails(model)
    assert failing.runs == 3


def test_the_file_on_stdin(model: Path) -> None:
    failing = FailingCommand(python("import sys; sys.exit(sys.stdin.read())"), "bug", 60)
    assert failing.watch(model).describe() == "exits with 1"
    model.write_bytes(b"other")
    assert not failing.still_fails(model)


def test_a_signal_and_a_hang(model: Path) -> None:
    assert (
        FailingCommand(["sh", "-c", "kill -ABRT $$"], None, 60).watch(model).describe() == "ends by SIGABRT"
    )
    failing = FailingCommand(["sh", "-c", "sleep 60 & wait"], None, 0.05)
    assert failing.watch(model).describe() == "takes too long"
    assert failing.still_fails(model)


@pytest.mark.parametrize(
    ("command", "expect", "message"),
    [
        (["true"], None, "the command succeeds for this model (exit code 0): there is nothing to reduce"),
        (["false"], "overflow", "the command fails, but its stderr has no 'overflow'"),
        (["/no/such/program"], None, "cannot start /no/such/program: No such file or directory"),
    ],
)
def test_nothing_to_reduce(command: list[str], expect: str | None, message: str, model: Path) -> None:
    with pytest.raises(UsageError) as error:
        FailingCommand(command, expect, 60).watch(model)
    assert str(error.value) == message
