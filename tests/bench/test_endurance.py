"""The endurance benchmark notices what grows, and a text that changes."""

from __future__ import annotations

import itertools
import os

import pytest

from bench.endurance import endure


def test_flat(capsys: pytest.CaptureFixture[str]) -> None:
    assert endure("nothing", 60, lambda: "text")
    assert "equal" in capsys.readouterr().out


def test_descriptors_that_stay_open(capsys: pytest.CaptureFixture[str]) -> None:
    descriptors: list[int] = []

    def leak() -> str:
        descriptors.append(os.open(os.devnull, os.O_RDONLY))
        return "text"

    try:
        assert not endure("leak", 60, leak)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    assert "GROWS" in capsys.readouterr().out


def test_texts_that_change(capsys: pytest.CaptureFixture[str]) -> None:
    numbers = itertools.count()
    assert not endure("other texts", 30, lambda: str(next(numbers)))
    assert "DIFFERENT" in capsys.readouterr().out
