"""`bench/engines.py`: that it measures each engine and says which cannot; not how fast anything is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.engines import main, report, speeds
from runtime_py.engines.registry import installed
from tests.runtime_py.engines.litert.test_lowered_file import write_circle
from tests.runtime_py.generation.test_generate import CountingEngine
from tests.runtime_py.toy import Toy


def test_a_line_for_each_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "toy"
    folder.mkdir()
    write_circle(Toy(cached_lengths=[4], capacity=12), folder / "model.circle")
    options = ["--rounds", "2", "--prompt", "5", "--tokens", "3", "--seconds", "1e-6", "--threads", "2", "1"]
    main([str(folder), *options, "--engines", "litert", "onnx"])
    title, *failed, head, two, one = capsys.readouterr().out.splitlines()
    assert title == "toy: 0.0 MB"
    assert head.split() == ["prefill", "5", "decode", "5"]
    speed = r" +[\d.,]+ +[\d.]+x"
    assert re.fullmatch(f"  litert, 2 threads{speed}{speed}", two)
    assert re.fullmatch(f"  litert, 1 thread {speed}{speed}", one)
    assert "1.00x" in two + one
    assert all("model.circle" in line for line in failed) or "onnx" not in installed()


def test_what_an_engine_is_fed() -> None:
    engine = CountingEngine(8)
    assert min(speeds(engine, [1, 2, 3, 1, 2], 3, 1e-9)) > 0
    assert engine.fed == [1, 2, 3, 1, 2]


def test_auto_against_the_fastest_other_form() -> None:
    """Of each round, and of the form that is the fastest in the median of the rounds."""
    forms = {"auto": (9.0, 16.0), "a": (10.0, 20.0), "b": (1.0, 10.0)}
    rounds = [{(form, "decode 5"): pair[place] for form, pair in forms.items()} for place in range(2)]
    *_, last = report(["auto", "a", "b"], rounds)
    assert last.split() == ["auto", "0.85", "(0.83..0.88)"]
