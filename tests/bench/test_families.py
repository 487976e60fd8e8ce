"""bench/families.py: shapes that can be converted, and the memory of a whole process tree."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from bench.families import SHAPES, measured, openelm_tensors
from export.config import CheckpointConfig
from export.preflight import reasons

CHILD = "import time; block = bytearray(b'1' * 60_000_000); time.sleep(0.5)"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}], check=True)"


PARAMETERS = {"openelm-270m": 271_527_168, "openelm-3b": 3_036_647_424}
"""As Apple's checkpoints have."""


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: str) -> None:
    model_type, fields = SHAPES[shape]
    if model_type == "openelm":
        assert sum(map(math.prod, openelm_tensors(fields).values())) == PARAMETERS[shape]
    else:
        assert not list(reasons(CheckpointConfig({"model_type": model_type, **fields}, "folder")))


def test_memory_of_a_child_counts(tmp_path: Path) -> None:
    seconds, memory = measured([sys.executable, "-c", PARENT], tmp_path / "log")
    assert seconds > 0.5
    assert 60_000_000 < memory.private <= memory.total
    with pytest.raises(SystemExit, match="failed"):
        measured([sys.executable, "-c", "1 / 0"], tmp_path / "log")
