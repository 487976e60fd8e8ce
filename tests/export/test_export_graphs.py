"""Graphs of an export appear together or not at all, and Ctrl-C ends it at any moment."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from export import graph_groups
from export.export_graphs import export_graphs
from export.options import ExportOptions
from o2o.errors import ModelError
from tests.checkpoints import GROUPED, write_checkpoint
from tests.conftest import ROOT
from tests.processes import spawn


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("small"), **GROUPED | {"num_hidden_layers": 1})


def test_an_export_that_fails_leaves_nothing(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second graph fails, when the first has been written."""
    written = []

    def export(self: graph_groups.GraphGroup, directory: Path, folder: Path, *_: object) -> list[str]:
        if self.traced.signature == "decode":
            raise ModelError("no")
        (folder / self.traced.file).write_text("a graph")
        written.append(folder / self.traced.file)
        return []

    monkeypatch.setattr(graph_groups.GraphGroup, "export", export)
    options = ExportOptions(16, [], processes=1)
    with pytest.raises(ModelError, match="no"):
        export_graphs(str(checkpoint), tmp_path / "new" / "out", options)
    assert len(written) == 1
    assert not list(tmp_path.iterdir())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "prefill.circle").write_text("of an earlier export")
    with pytest.raises(ModelError, match="no"):
        export_graphs(str(checkpoint), tmp_path / "out", options)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["prefill.circle"]
    assert (tmp_path / "out" / "prefill.circle").read_text() == "of an earlier export"


EXPORT = ["-m", "export", "CHECKPOINT", "-o", "out", "--max-length=16", "--prefill-lengths=4,8"]
PACKAGE = [ROOT / "tinyllama" / "pipeline.py", "--model", "CHECKPOINT", "--package", "out", "--max-length=16"]
CONVERT = [
    *(ROOT / "tinyllama" / "convert_to_tflite.py", "--checkpoint_path=CHECKPOINT", "--output_path=."),
    *("--kv_cache_max_len=16", "--prefill_seq_lens=8"),
]


@pytest.mark.parametrize("moment", ["at once", "at the first line", "later"])
@pytest.mark.parametrize(
    ("program", "command"),
    [
        ("export", [*EXPORT, "--jobs=2"]),
        ("export", [*EXPORT, "--jobs=1"]),
        ("pipeline.py", PACKAGE),
        ("convert_to_tflite.py", CONVERT),
    ],
    ids=["export in children", "export", "pipeline", "conversion"],
)
def test_ctrl_c_ends_a_command(
    tmp_path: Path, checkpoint: Path, program: str, command: list[str | Path], moment: str
) -> None:
    """With one line and exit code 130; no file and no process is left."""
    arguments = [str(argument).replace("CHECKPOINT", str(checkpoint)) for argument in command]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with spawn([sys.executable, *arguments], cwd=tmp_path, env=environment, **pipes) as process:
        assert process.stderr is not None
        first = b"" if moment == "at once" else process.stderr.readline()
        if moment == "at once":
            time.sleep(0.3)
        elif moment == "later":
            time.sleep(1)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    lines = (first + errors).decode().splitlines()
    assert process.returncode == 130, lines
    assert [line for line in lines if "interrupted" in line] == [f"{program}: interrupted"]
    assert "Traceback" not in "\n".join(lines)
    assert output == b""
    assert not list(tmp_path.iterdir())
    for _ in range(100):  # a process that was killed takes a moment to free its memory
        if subprocess.run(["pgrep", "-f", str(checkpoint)], stdout=subprocess.DEVNULL).returncode:
            return
        time.sleep(0.1)
    pytest.fail("a process goes on")
