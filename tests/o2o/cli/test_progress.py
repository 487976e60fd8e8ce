"""Progress bars appear on a terminal only."""

from __future__ import annotations

import io
import threading

import pytest

from o2o.cli.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_nothing_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("reading", 10) as advance:
        advance(10)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("shown", [True, False])
def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, shown: bool) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with progress("reading", 10, unit="graph", shown=shown) as advance:
        advance(10)
    assert ("reading" in terminal.getvalue()) == shown


def test_the_time_runs_on_while_nothing_advances(monkeypatch: pytest.MonkeyPatch) -> None:
    updated = threading.Event()

    class Watched(Terminal):
        def write(self, text: str) -> int:
            if threading.current_thread() is not threading.main_thread():
                updated.set()
            return super().write(text)

    monkeypatch.setattr("sys.stderr", Watched())
    monkeypatch.setattr("o2o.cli.progress.TICK", 0.001)
    with progress("export", 1, unit="graph"):
        assert updated.wait(30)
