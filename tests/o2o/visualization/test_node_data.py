"""Node data has the form that Model Explorer reads, with keys that are in the model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from o2o import formats
from o2o.errors import ModelError
from o2o.filters.inspect import main
from o2o.filters.quantize_weights import main as quantize
from o2o.visualization.node_data import node_data
from tests.o2o.graphs import decoder, linear


def test_bytes_of_constants() -> None:
    data = node_data(linear())
    assert list(data) == ["main"]
    assert data["main"]["results"] == {"y": {"value": 3 * 4 * 4 + 3 * 4}, "z": {"value": 4}}
    assert [stop["stop"] for stop in data["main"]["gradient"]] == [0, 1]


def test_errors_of_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target, report = (str(tmp_path / name) for name in ("in.circle", "out.circle", "report.json"))
    formats.save(decoder(), source)
    assert quantize([source, "-o", target, "--report", report]) == 0
    capsys.readouterr()
    assert main(["--node-data", "--report", report, target]) == 0
    data = json.loads(capsys.readouterr().out)
    entries = json.loads(Path(report).read_text())["tensors"]
    errors = {entry["name"]: entry["error"]["rms"] for entry in entries if "error" in entry}
    assert data["decode"]["results"]["logits"] == {"value": errors["head"]}
    names = {v.name for graph in formats.load(target).graphs for node in graph for v in node.outputs}
    assert {key for graph in data.values() for key in graph["results"]} <= names


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ([], "the report is not one of quantize.weights.py: it has no list `tensors`"),
        (
            {"tensors": [{"name": "w", "error": {"rms": "much"}}]},
            "the report is not one of quantize.weights.py",
        ),
        ({"tensors": [{"name": "w", "error": {"rms": 1}}]}, "the model has none of the quantized tensors"),
    ],
)
def test_other_reports(report: object, message: str) -> None:
    with pytest.raises(ModelError) as error:
        node_data(linear(), report)
    assert str(error.value).startswith(message)


def test_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    formats.save(linear(), tmp_path / "m")
    (tmp_path / "report").write_text("{")
    assert main(["--report", "report", str(tmp_path / "m")]) == 2
    assert main(["--html", "--json", str(tmp_path / "m")]) == 2
    assert main(["--node-data", "--report", str(tmp_path / "report"), str(tmp_path / "m")]) == 1
    assert capsys.readouterr().err.count("\n") == 3
