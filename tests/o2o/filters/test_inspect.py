"""inspect.model.py says what is in a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from o2o import formats
from o2o.filters import gc
from o2o.filters.inspect import main
from tests.o2o.graphs import SAMPLES, decoder

EXPECTED = """\
model.circle: Circle, {size} bytes, 2 subgraphs

subgraph 0 'prefill', signature prefill
  inputs   0  input_ids       int64    [1,4]       tokens
           1  cache_position  int64    [1]         position
           2  past_key_0      float32  [1,2,8,4]   key_cache, layer 0, BNTH
  outputs  0  logits          float32  [1,4,2000]  logits
           1  key_0           float32  [1,2,8,4]   key, layer 0, BNTH
  operators 5: ADD 1, CAST 1, FULLY_CONNECTED 1, GATHER 1, MUL 1

subgraph 1 'decode', signature decode
  inputs   0  input_ids       int64    [1,1]       tokens
           1  cache_position  int64    [1]         position
           2  past_key_0      float32  [1,2,8,4]   key_cache, layer 0, BNTH
  outputs  0  logits          float32  [1,1,2000]  logits
           1  key_0           float32  [1,2,8,4]   key, layer 0, BNTH
  operators 5: ADD 1, CAST 1, FULLY_CONNECTED 1, GATHER 1, MUL 1

constants: 6 in 4 buffers, 64,520 bytes inside (float32 64,520)
  2 buffers shared, which saves 64,512 bytes
  largest  64,000  head   float32  [2000,8]  in prefill, decode
              512  embed  float32  [16,8]    in prefill, decode
                4  half   float32  [1]       in prefill
                4  half   float32  [1]       in decode

contract: prefill, decode

history:
  1  gc.py  (0.1.0)
"""


@pytest.fixture
def collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    monkeypatch.chdir(tmp_path)
    formats.save(decoder(), "raw.circle")
    assert gc.main(["raw.circle", "-o", "model.circle"]) == 0
    capsys.readouterr()
    return tmp_path / "model.circle"


def test_text(collected: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model.circle"]) == 0
    captured = capsys.readouterr()
    assert captured.out == EXPECTED.replace("{size}", f"{collected.stat().st_size:,}")
    assert captured.err == ""


def test_json(collected: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model.circle", "--json"]) == 0
    description = json.loads(capsys.readouterr().out)
    assert description["bytes"] == collected.stat().st_size
    assert description["graphs"][1]["inputs"][2]["layout"] == "BNTH"
    assert description["constants"]["saved"] == 64512
    assert description["contract"]["signatures"]["decode"]["outputs"][0]["role"] == "logits"
    assert description["history"][0]["filter"] == "gc.py"


def test_to_a_file(collected: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model.circle", "-o", "description.txt"]) == 0
    assert capsys.readouterr().out == ""
    assert Path("description.txt").read_text().startswith("model.circle: Circle")


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_every_kind_of_model(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    formats.save(SAMPLES[name](), tmp_path / "m")
    assert main([str(tmp_path / "m")]) == 0
    text = capsys.readouterr().out
    assert main([str(tmp_path / "m"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["graphs"][0]["label"] in text


def test_says_who_runs_a_graph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    formats.save(SAMPLES["conditional"](), tmp_path / "m")
    main([str(tmp_path / "m")])
    assert "subgraph 2 'else', run by IF of main" in capsys.readouterr().out
