"""SIGINT ends the commands of `bench` with one line and exit code 130."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.o2o.cli.test_interrupt import interrupted

BENCH = ROOT / "bench"


@pytest.mark.parametrize("after", [0, 0.2])
@pytest.mark.parametrize("command", ["decode_attention.py", "export.py", "pipe.py"])
def test_a_command(command: str, after: float) -> None:
    code, message = interrupted(after, "script", BENCH / command)
    assert (code, message) == (130, f"{command}: interrupted\n")


def test_every_command_is_covered() -> None:
    """Each script starts with `exit_on_interrupt` under its own name."""
    for file in sorted(BENCH.glob("*.py")):
        text = file.read_text()
        if 'if __name__ == "__main__"' in text:
            assert f'interrupt.exit_on_interrupt("{file.name}")' in text, file


def test_the_peers(tmp_path: Path) -> None:
    code, message = interrupted(0, "module", "bench.peers", "--work", tmp_path, "--environments", tmp_path)
    assert (code, message) == (130, "bench.peers: interrupted\n")
