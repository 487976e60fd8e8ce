"""The processor time of other programs."""

from __future__ import annotations

import builtins
import io
import os
import time
from typing import Any

import pytest

from runtime_py.engines.other_programs import OtherPrograms


def test_only_other_programs_count(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    seconds = {"all": 100.0, "own": 7.0, "now": 50.0}

    def opened(file: str, *args: Any) -> io.StringIO:
        busy = round(seconds["all"] * ticks)
        return io.StringIO(f"cpu  {busy - 3} 1 1 {int(seconds['now']) * ticks} 0 0 1 0 0 0\ncpu0 1\n")

    monkeypatch.setattr(builtins, "open", opened)
    monkeypatch.setattr(os, "times", lambda: os.times_result((seconds["own"], 0, 0, 0, 0)))
    monkeypatch.setattr(time, "perf_counter", lambda: seconds["now"])
    others = OtherPrograms()
    seconds.update(all=104.0, own=9.0, now=54.0)
    cores = others.cores
    monkeypatch.undo()
    assert cores == pytest.approx(0.5)


def test_a_system_that_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(builtins, "open", refuse)
    cores = OtherPrograms().cores
    monkeypatch.undo()
    assert cores == 0.0
