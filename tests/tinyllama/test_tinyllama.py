"""The export script, as a user runs it: by its path, from any folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from o2o import formats
from tests.checkpoints import DEMO, write_checkpoint
from tests.conftest import ROOT
from tinyllama.tinyllama import main

SCRIPT = ROOT / "tinyllama" / "tinyllama.py"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("small"), **DEMO | {"num_hidden_layers": 1})


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_prefill(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In a process of its own, and from any folder: see the guide's test."""
    monkeypatch.chdir(tmp_path)
    assert main(["--mode", "prefill", "--model", str(checkpoint)]) == 0
    out, err = capfd.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("tinyllama.py: wrote prefill.circle, 0.5 MB in ")
    assert [path.name for path in tmp_path.glob("*.circle*")] == ["prefill.circle"]  # no temporary file
    (signature,) = formats.load(tmp_path / "prefill.circle").signatures
    assert signature.name == "prefill"
    assert signature.inputs["input_ids"].shape == [1, 32]


@pytest.mark.parametrize(("form", "capacity"), [("concat", 10), ("static", 12)])
def test_decode(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, form: str, capacity: int
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--mode", "decode", "--model", str(checkpoint), "--max-length", "12", "--cache", form]
    assert main(arguments) == 0
    (signature,) = formats.load("decode_.circle").signatures
    assert signature.name == "decode"
    assert signature.inputs["past_key_0"].shape == [1, 16, capacity, 4]
    assert [path.name for path in tmp_path.glob("*.circle*")] == ["decode_.circle"]


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        ([], 2, "arguments are required: --mode"),
        (["--mode", "train"], 2, "invalid choice: 'train'"),
        (["--mode", "prefill", "--model", "./nope"], 2, "no such folder: ./nope"),
        (["--mode", "prefill", "--model", "."], 1, "has no config.json"),
        (["--mode", "decode", "--max-length", "2", "--model", "."], 2, "at least 3 with --cache concat"),
    ],
)
def test_errors_are_one_line(tmp_path: Path, arguments: list[str], code: int, complaint: str) -> None:
    result = run(tmp_path, *arguments)
    assert result.returncode == code
    (line,) = result.stderr.splitlines()
    assert line.startswith("tinyllama.py: ")
    assert complaint in line
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_old_file(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "old.circle"
    output.write_bytes(b"old")
    arguments = ["--mode", "prefill", "--max-length", "65", "--model", str(checkpoint), "-o", str(output)]
    assert main(arguments) == 2
    assert "this llama model has 64 positions" in capsys.readouterr().err
    assert output.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [output]
