"""`docs/author-a-model.md` as it stands: its model computes what transformers' Llama computes.

`make docs-test` also runs its commands.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import llama2c
from docs.tools.examples import blocks
from export.hub import resolve
from export.loading_flags import MODEL_FILE, VARIABLES
from o2o.errors import ModelError
from tests.conftest import ROOT

STORIES = ROOT.parent / "shared" / "data" / "stories260K" / "stories260K.bin"
PAGE = "docs/author-a-model.md"
IDS = [1, 403, 407, 261, 448, 275, 341, 440, 457]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the file of the page, and `--model-file` set to it."""
    block = next(block for block in blocks(PAGE) if block.title == "stories.py")
    (tmp_path / "stories.py").write_text(f"{block.text}\n")
    monkeypatch.setenv(VARIABLES[MODEL_FILE], str(tmp_path / "stories.py"))
    monkeypatch.setenv("O2O_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_the_model_is_that_of_llama2c(folder: Path) -> None:
    """On the trained checkpoint if it lies beside the repository, else on a random one of its layout."""
    from tinyllama.verification.hugging_face import HuggingFace

    path = STORIES
    if not path.is_file():
        llama2c.write_random(path := folder / "stories.bin")
    expected = HuggingFace(llama2c.convert(path, folder / "llama")).scores(IDS)
    actual = HuggingFace(resolve(path)).scores(IDS)
    assert np.abs(actual - expected).max() < 1e-4 * np.abs(expected).max()


def test_a_truncated_checkpoint(folder: Path) -> None:
    llama2c.write_random(path := folder / "stories.bin", (16, 24, 2, 4, 2, 40, 32))
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ModelError, match=r"stories\.py:\d+: error: unpack requires a buffer of 28 bytes"):
        resolve(path)


def test_the_module_runs_by_itself(folder: Path) -> None:
    (block,) = (block for block in blocks(PAGE) if block.language == "python" and not block.title)
    command = [sys.executable, "-c", block.text]
    environment = {"PYTHONPATH": f"{folder}:{ROOT}", "PATH": ""}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "torch.Size([1, 3, 512])\n", done.stderr
