from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.peers import __main__ as peers

VARIANTS = {
    "this project int4 litert": {"bits": 4},
    "this project int4 onnx": {"bits": 4},
    "this project float32 onnx": {"bits": 32},
    "llama.cpp Q4_0": {"bits": 4},
    "Hugging Face bfloat16": {"bits": 16},
}


def report(machine: str, litert: float, onnx: float, theirs: float) -> dict[str, Any]:
    speeds = {
        "this project int4 litert": litert,
        "this project int4 onnx": onnx,
        "this project float32 onnx": 9.0,
        "llama.cpp Q4_0": theirs,
        "Hugging Face bfloat16": 3.0,
    }
    rounds = [{name: {"load": 1.0, "decode 128": speed} for name, speed in speeds.items()}]
    pairs = [{"ours": name} for name in VARIANTS if name.startswith("this project")]
    shape = {"variants": VARIANTS, "rounds": rounds, "ratios": pairs}
    return {"version": 1, "machine": machine, "shapes": {"135m": shape}}


def test_each_processor_has_a_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The fastest variant of as many bits is compared. Reports of one processor share a column."""
    reports = [
        report("2 x A, AVX2", 5.0, 6.0, 4.0),
        report("2 x B, AVX512-VNNI", 8.0, 6.0, 4.0),
        report("2 x A, AVX2", 5.0, 8.0, 4.0),
    ]
    files = []
    for number, one in enumerate(reports):
        files.append(tmp_path / f"{number}.json")
        files[-1].write_text(json.dumps(one))
    assert peers.main(["--compare", *map(str, files)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "| this project relative to | 2 x A, AVX2 | 2 x B, AVX512-VNNI |",
        "|---|---|---|",
        "| 135m, llama.cpp Q4_0, decode 128 | 1.75 (1.50..2.00) | 2.00 (2.00..2.00) |",
        "| 135m, llama.cpp Q4_0, load | 1.00 (1.00..1.00) | 1.00 (1.00..1.00) |",
        "| 135m, Hugging Face bfloat16, decode 128 | 3.00 (3.00..3.00) | 3.00 (3.00..3.00) |",
        "| 135m, Hugging Face bfloat16, load | 1.00 (1.00..1.00) | 1.00 (1.00..1.00) |",
    ]


@pytest.mark.parametrize("content", [None, "{", "[]", '{"version": 2}', "\xff"])
def test_a_file_without_measurements(
    tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.json"
    if content is not None:
        file.write_text(content, encoding="latin-1")
    assert peers.main(["--compare", str(file)]) == 2
    assert f"{file}: " in capsys.readouterr().err
