"""The export script, as a user runs it: by its path, from any folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from o2o import formats
from tests.checkpoints import DEMO, write_checkpoint
from tests.conftest import ROOT

SCRIPT = ROOT / "tinyllama" / "tinyllama.py"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("small"), **DEMO | {"num_hidden_layers": 1})


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_writes_the_two_files_of_the_guide(tmp_path: Path, checkpoint: Path) -> None:
    for mode, file, shape in (("prefill", "prefill.circle", [1, 32]), ("decode", "decode_.circle", [1, 1])):
        result = run(tmp_path, "--mode", mode, "--model", checkpoint)
        assert result.returncode == 0, result.stderr
        assert result.stdout == ""
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"tinyllama.py: wrote {file}, 0.5 MB in ")
        (signature,) = formats.load(tmp_path / file).signatures
        assert signature.name == mode
        assert signature.inputs["input_ids"].shape == shape
    assert signature.inputs["past_key_0"].shape == [1, 16, 30, 4]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["decode_.circle", "prefill.circle"]


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        ([], 2, "arguments are required: --mode"),
        (["--mode", "train"], 2, "invalid choice: 'train'"),
        (["--mode", "prefill", "--model", "./nope"], 2, "no such directory: ./nope"),
        (["--mode", "prefill", "--model", "."], 1, "has no config.json"),
        (["--mode", "decode", "--max-length", "2", "--model", "."], 2, "needs at least 3"),
    ],
)
def test_errors_are_one_line(tmp_path: Path, arguments: list[str], code: int, complaint: str) -> None:
    result = run(tmp_path, *arguments)
    assert result.returncode == code
    (line,) = result.stderr.splitlines()
    assert line.startswith("tinyllama.py: ")
    assert complaint in line
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_old_file(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "prefill.circle").write_bytes(b"old")
    result = run(tmp_path, "--mode", "prefill", "--max-length", "65", "--model", checkpoint)
    assert result.returncode == 2
    assert "this model has 64 positions" in result.stderr
    assert (tmp_path / "prefill.circle").read_bytes() == b"old"
