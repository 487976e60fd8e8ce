"""`bench/engines.py`: that it measures each engine and says which cannot; not how fast anything is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.engines import _ratio, main, speeds
from runtime_py.engines.registry import installed
from tests.runtime_py.engines.litert.test_lowered_file import write_circle
from tests.runtime_py.generation.test_generate import CountingEngine
from tests.runtime_py.toy import Toy


def test_a_line_for_each_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "toy"
    folder.mkdir()
    write_circle(Toy(cached_lengths=[4], capacity=12), folder / "model.circle")
    main([str(folder), "--rounds", "2", "--prompt", "5", "--tokens", "3", "--engines", "litert", "onnx"])
    title, onnx, litert = capsys.readouterr().out.splitlines()
    assert title == "toy: 0.0 MB"
    number = r"[\d.,]+"
    speed = rf"{number} tokens/s 1\.00x \(1\.00 to 1\.00\)"
    assert re.fullmatch(rf"  litert   prefill of 5 +{speed}   decode +{speed}", litert)
    assert "model.circle" in onnx or "onnx" not in installed()


def test_what_an_engine_is_fed() -> None:
    engine = CountingEngine(8)
    assert min(speeds(engine, [1, 2, 3, 1, 2], 3, min)) > 0
    assert engine.fed == [1, 2, 3, 1, 2]


def test_ratios() -> None:
    assert _ratio([2.0]) == "2.00x (2.00 to 2.00)"
    assert _ratio([1.0, 2.0, 3.0]) == "2.00x (1.00 to 3.00)"
