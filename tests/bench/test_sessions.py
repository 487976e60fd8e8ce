"""bench/sessions.py: texts that differ are counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import sessions
from bench.sessions import check, measure, measure_round
from runtime_py.generation import session
from runtime_py.package import Package
from tests.runtime_py.generation.test_generate import Digits
from tests.runtime_py.toy import Toy


@pytest.fixture
def package(tmp_path: Path) -> Package:
    (tmp_path / "model.tflite").write_bytes(Toy(prefill_length=0, cached_lengths=[4, 8], capacity=32).file)
    package = Package.load(tmp_path, max_sessions=8)
    package.tokenizer = Digits()  # type: ignore[assignment, misc]
    return package


def test_all_texts_are_those_alone(package: Package) -> None:
    with package:
        assert check(package, 20) == (0, 0)


def test_wrong_texts_are_counted(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every text begins with the least likely token."""
    read = session.Session.read
    monkeypatch.setattr(session.Session, "read", lambda self, tokens: -read(self, tokens))
    with package:
        assert check(package, 20) == (80, 0)


def test_a_tie_is_no_difference(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "TIE", float("inf"))
    read = session.Session.read
    monkeypatch.setattr(session.Session, "read", lambda self, tokens: -read(self, tokens))
    with package:
        assert check(package, 5) == (0, 20)


@pytest.mark.parametrize("together", [False, True])
def test_a_round(package: Package, together: bool) -> None:
    with package:
        measured = measure_round(package, [[1, 2], [3, 4], [5, 6], [7, 8]], 5, together)
        assert measured.speed > 0
        assert len(measured.firsts) == 4
        assert min(measured.firsts) > 0


def test_the_figures_of_a_line(package: Package) -> None:
    with package:
        assert len(measure(package, 1, 2, 3).split()) == 6
