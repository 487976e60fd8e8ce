"""`python -m runtime_py.quality`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from o2o import formats
from o2o.filters import quantize_weights
from runtime_py.quality import main
from tests.o2o.quantization.models import language_model
from tests.runtime_py.toy import Toy


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Before, after, and the report of the filter between."""
    before, after, report = (tmp_path / name for name in ("f32.tflite", "int8.tflite", "report.json"))
    formats.save(language_model("tflite"), before)
    argv = [str(before), "-o", str(after), "--recipe", "dynamic_int8", "--report", str(report)]
    assert quantize_weights.main(argv) == 0
    return before, after, report


def test_says_what_the_filter_says(files, capsys):
    before, after, report = files
    expected = json.loads(report.read_text())
    assert main([str(before), str(after), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["bytes"] == [before.stat().st_size, after.stat().st_size]
    assert [one["name"] for one in result["tensors"]] == [one["name"] for one in expected["tensors"]]
    for kind in ("rms", "max"):
        assert result["error"][kind] == pytest.approx(expected["error"][kind], rel=1e-4)
        for one, known in zip(result["tensors"], expected["tensors"], strict=True):
            assert one["error"][kind] == pytest.approx(known["error"][kind], rel=1e-4)
    assert "perplexity" not in result


def test_the_table(files, capsys):
    before, after, _ = files
    capsys.readouterr()
    assert main([str(before), str(after)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.split("  +", lines[0]) == ["tensor", "shape", "stored", "bytes", "rms error", "max error"]
    assert re.split("  +", lines[1])[:4] == ["embed", "128x64", "float32 to int8", "32,768 to 9,728"]
    assert lines[5].startswith("overall  4 tensors")
    sizes = f"{before.stat().st_size:,} bytes to {after.stat().st_size:,}"
    assert lines[-1].startswith(f"file        {sizes}, ")


def test_perplexity_where_there_is_a_text(tmp_path, capsys):
    for name, seed in (("one", 0), ("other", 1)):
        (tmp_path / f"{name}.tflite").write_bytes(Toy(seed=seed).file)
    (tmp_path / "ids.txt").write_text("1 2 3 4\n")
    argv = [
        *(str(tmp_path / name) for name in ("one.tflite", "other.tflite")),
        "--ids",
        str(tmp_path / "ids.txt"),
    ]
    assert main([*argv, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    before, after = report["perplexity"]
    assert report["change"] == pytest.approx(after / before - 1)
    assert report["tensors"] == []
    assert main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "all tensors are stored as before"
    assert lines[-3].startswith(f"perplexity  {before:.4f} to {after:.4f}, {report['change']:+.2%} (")
    divergence = report["kl_divergence"]
    assert 0 < divergence["mean"] <= divergence["percentile_99"]
    mean, high = divergence["mean"], divergence["percentile_99"]
    assert lines[-2] == f"divergence  {mean:.6f} nats a token, 99th percentile {high:.6f}"
    assert report["top1_agreement"] in (0, 1 / 3, 2 / 3, 1)
    assert lines[-1] == f"top token   the same for {report['top1_agreement']:.2%} of the tokens"


def test_files_of_different_models(files, tmp_path, capsys):
    _, after, _ = files
    (tmp_path / "toy.tflite").write_bytes(Toy().file)
    capsys.readouterr()
    assert main([str(tmp_path / "toy.tflite"), str(after)]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith("quality: the first model has no embed, which is int8 in the second")
