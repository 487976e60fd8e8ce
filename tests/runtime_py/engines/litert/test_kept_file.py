"""Files that stay readable."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from runtime_py.engines.litert.kept_file import KeptFile


@pytest.mark.skipif(sys.platform != "linux", reason="paths of descriptors")
def test_the_contents_stay_when_the_file_is_removed(tmp_path: Path) -> None:
    file = tmp_path / "packed"
    file.write_bytes(b"weights")
    kept = KeptFile(file)
    os.unlink(file)
    assert kept.path.read_bytes() == b"weights"
    kept.close()
    kept.close()
    with pytest.raises(FileNotFoundError):
        kept.path.read_bytes()


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        KeptFile(tmp_path / "packed")
