"""bench/families.py: shapes that can be converted, and the memory of a whole process tree."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench.families import SHAPES, measured
from export.config import CheckpointConfig
from export.preflight import reasons

CHILD = "import time; block = bytearray(b'1' * 60_000_000); time.sleep(0.5)"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}], check=True)"


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: str) -> None:
    model_type, fields = SHAPES[shape]
    assert not list(reasons(CheckpointConfig({"model_type": model_type, **fields}, "folder")))


def test_memory_of_a_child_counts(tmp_path: Path) -> None:
    seconds, memory = measured([sys.executable, "-c", PARENT], tmp_path / "log")
    assert seconds > 0.5
    assert 60_000_000 < memory.private <= memory.total
    with pytest.raises(SystemExit, match="failed"):
        measured([sys.executable, "-c", "1 / 0"], tmp_path / "log")
