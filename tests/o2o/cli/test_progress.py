"""Progress bars appear on a terminal only."""

from __future__ import annotations

import io

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
