"""reduce.model.py: a command that fails for a model fails for the small one, interrupted or not."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from o2o import formats
from o2o.filters.reduce_model import main
from o2o.reduction.reducer import Reducer
from tests.o2o.filters.test_select_op import chain

HAS_TENSOR = "import sys; sys.exit('broken' if b'tar' b'get' in open(sys.argv[1], 'rb').read() else 0)"
"""The history of candidates has this text too, so the name is in two parts."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    model = chain()
    model.graphs[0].outputs[1].name = "target"
    formats.save(model, tmp_path / "in.circle")
    return tmp_path / "in.circle"


def command() -> list[str]:
    """Fails for files with the tensor `target`, which MUL computes."""
    return [sys.executable, "-S", "-c", HAS_TENSOR, "{}"]


def test_a_small_model(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "small.circle"
    assert main([str(model), "-o", str(target), "--expect", "broken", "--", *command()]) == 0
    small = formats.load(target)
    assert [node.op_type for node in small.graphs[0]] == ["MUL"]
    assert small.history[-1]["arguments"] == ["--expect", "broken", "--", *command()]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "reduce.model.py: the command exits with 1"
    assert lines[1].startswith("reduce.model.py: 1 operator, ")
    assert lines[1].endswith(" runs")


def test_an_interruption_leaves_the_smallest(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(self: Reducer, index: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Reducer, "_inputs", interrupted)
    target = tmp_path / "small.circle"
    assert main([str(model), "-o", str(target), "--", *command()]) == 130
    assert [node.op_type for node in formats.load(target).graphs[0]] == ["MUL"]
    assert "wrote the smallest model so far: 1 operator, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-- true", "the command succeeds for this model (exit code 0): there is nothing to reduce"),
        ("-- /no/such/program {}", "cannot start /no/such/program: No such file or directory"),
        ("--expect overflow -- false", "the command fails, but its stderr has no 'overflow'"),
        ("", "give a command behind `--`: reduce.model.py MODEL -- COMMAND {}"),
        ("--", "give a command behind `--`: reduce.model.py MODEL -- COMMAND {}"),
        ("--timeout 0 -- false", "argument --timeout: '0' is not a positive integer (--help explains)"),
    ],
)
def test_nothing_to_do(
    arguments: str, message: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "small.circle"
    assert main([str(model), "-o", str(target), *shlex.split(arguments)]) == 2
    assert capsys.readouterr().err == f"reduce.model.py: {message}\n"
    assert not target.exists()
