from __future__ import annotations

from typing import Any

import pytest

import bench.export as bench
from tests.checkpoints import GROUPED


@pytest.mark.parametrize("form", ["prefill", "chunk", "concat", "static"])
def test_each_form_is_measured(form: str) -> None:
    config = GROUPED | {"model_type": "llama", "num_hidden_layers": 1}
    result = bench.measure(config, form, 4, 16)
    assert result["nodes"] > 40
    assert result["cpu"] > 0
    assert result["seconds"] > 0
    assert result["peak"] > 100


def test_what_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run(config: dict[str, Any], form: str, tokens: int, capacity: int) -> dict[str, float]:
        layers = config["num_hidden_layers"]
        seconds = 1 + {1: 1, 2: 1.5, 6: 5.5}[layers] - (form == "concat" and layers == 6) * 2
        return {"nodes": 60 * layers, "start": 2, "seconds": 9, "cpu": seconds, "peak": 400 + 3 * layers}

    monkeypatch.setattr(bench, "in_a_process", run)
    bench.main(["--layers", "6", "1", "2", "--forms", "static", "concat", "--tokens", "8"])
    assert capsys.readouterr().out.splitlines() == [
        "tinyllama-1.1b, T = 8, S = 256",
        "layers  nodes    start  seconds    CPU s  peak MB",
        "static: decode, the new row written into caches of S",
        "     1     60      2.0      9.0      2.0      403",
        "     2    120      2.0      9.0      2.5      406",
        "     6    360      2.0      9.0      6.5      418",
        "       peak = 400 + 3.00 MB a layer; 500 and 1000 ms a layer, ratio 2.00",
        "concat: decode on S - 1 rows and the new one",
        "     1     60      2.0      9.0      2.0      403",
        "     2    120      2.0      9.0      2.5      406",
        "     6    360      2.0      9.0      4.5      418",
        "       peak = 400 + 3.00 MB a layer; 500 and 500 ms a layer, ratio 1.00",
    ]
