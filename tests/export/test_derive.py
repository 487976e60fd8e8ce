"""Derived checkpoints are made once, kept in the user's cache, and made again when a file has changed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from export import build_graph, convert, derive
from export.hub import resolve
from o2o.errors import ModelError, UsageError
from o2o.weights.binding import bind
from o2o.weights.checkpoint import open_checkpoint
from tests.checkpoints import GROUPED, write_checkpoint
from tests.export.conftest import on_litert
from tests.export.test_adapter import adapter, linear
from tests.export.test_gguf_checkpoint import GROUPED as SHAPE
from tests.export.test_gguf_checkpoint import LLAMA_KEYS, random_model
from tests.gguf_files import Kind, write_gguf
from tinyllama.verification.hugging_face import load


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("O2O_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "checkpoints"


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "hub" / "tiny.Q8_0.gguf"
    path.parent.mkdir()
    model = random_model("llama", SHAPE | {"rope_theta": 5e5})
    write_gguf(path, model, "llama", LLAMA_KEYS, Kind.Q8_0)
    return path


def test_a_gguf_file_is_converted_once(gguf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    folder = resolve(gguf, log=lines.append)
    assert folder.parent == cache
    assert folder.name.startswith("tiny.Q8_0-")
    assert {"config.json", "derived_weights.json"} <= {file.name for file in folder.iterdir()}
    assert list(cache.iterdir()) == [folder]

    monkeypatch.setattr(derive, "derive", lambda *_: pytest.fail("derived again"))
    (gguf.parent / "config.json").write_text("{}")  # of the model before it was quantized
    again: list[str] = []
    assert resolve(gguf.parent, log=again.append) == folder  # the only file of a folder
    assert again == lines  # what is left out is said each time


def test_a_file_that_has_changed_is_converted_again(gguf: Path) -> None:
    folder = resolve(gguf)
    before = open_checkpoint(folder).tensors["model.norm.weight"].read_float32()
    model = random_model("llama", SHAPE)
    with torch.no_grad():
        model.model.norm.weight.add_(1)
    write_gguf(gguf, model, "llama", LLAMA_KEYS)
    with pytest.raises(ModelError, match=r"tiny.Q8_0.gguf has changed"):
        open_checkpoint(folder)
    assert resolve(gguf) == folder
    np.testing.assert_allclose(
        open_checkpoint(folder).tensors["model.norm.weight"].read_float32(), before + 1, atol=1e-6
    )


def test_a_split_gguf_file(gguf: Path, tmp_path: Path) -> None:
    """As `llama-gguf-split` and `gguf` write it: any part, or the folder, is the whole model."""
    parts = tmp_path / "parts"
    parts.mkdir()
    model = random_model("llama", SHAPE | {"rope_theta": 5e5})
    write_gguf(gguf, model, "llama", LLAMA_KEYS, Kind.Q8_0)
    write_gguf(parts / "tiny.gguf", model, "llama", LLAMA_KEYS, Kind.Q8_0, tensors_per_file=8)
    first, *_, last = sorted(parts.iterdir())
    assert first.name.startswith("tiny-00001-of-")
    folder = resolve(parts)
    whole, split = (open_checkpoint(one).tensors for one in (resolve(gguf), folder))
    assert whole.keys() == split.keys()
    for name, tensor in whole.items():
        np.testing.assert_array_equal(split[name].read_float32(), tensor.read_float32())
    assert resolve(last) == folder
    before = json.loads((folder / "derived_from.json").read_text())
    os.utime(last, (0, 0))
    assert resolve(first) == folder
    assert json.loads((folder / "derived_from.json").read_text()) != before


def test_folders_and_files_that_are_no_model(tmp_path: Path, gguf: Path) -> None:
    (gguf.parent / "other.gguf").write_bytes(gguf.read_bytes())
    with pytest.raises(UsageError, match=r"has 2 GGUF files: give one of them, such as .*other.gguf"):
        resolve(gguf.parent)
    (tmp_path / "fake.gguf").write_bytes(b"PK\x03\x04")
    with pytest.raises(UsageError, match="is not a GGUF file: give"):
        resolve(tmp_path / "fake.gguf")
    (tmp_path / "cut.gguf").write_bytes(gguf.read_bytes()[:900])
    with pytest.raises(ModelError, match="truncated or damaged"):
        resolve(tmp_path / "cut.gguf")
    with pytest.raises(UsageError, match=r"give the folder that holds adapter_config.json"):
        resolve(gguf, adapter=gguf)


def test_the_command(gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    assert derive.main([str(gguf), "-o", str(tmp_path / "out")]) == 0
    lines = json.loads(capsys.readouterr().out)
    assert lines == [f"{gguf} has no tokenizer: run the package with --tokenizer DIR"]


def test_a_missing_tokenizer_is_named_once(
    gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert.main([str(gguf), "-o", str(tmp_path / "p"), "--dry-run"]) == 0
    assert capsys.readouterr().err.count("has no tokenizer") == 1


def test_a_graph_with_dequantized_weights_and_an_adapter(gguf: Path, tmp_path: Path) -> None:
    lora = adapter(tmp_path / "lora", linear("model.layers.0.self_attn.q_proj", 64, 64))
    folder = resolve(gguf, adapter=lora, log=lambda line: None)
    model = build_graph.prefill(folder, tokens=8, weights="external")
    bind(model)
    ids = np.arange(8, dtype=np.int64)[None]
    with torch.no_grad():
        expected = load(folder)(torch.from_numpy(ids)).logits.numpy()
        unchanged = load(resolve(gguf, log=lambda line: None))(torch.from_numpy(ids)).logits.numpy()
    actual = next(one for one in on_litert(model)({"input_ids": ids}).values() if one.shape == expected.shape)
    assert np.abs(actual - expected).max() < 1e-4 * expected.std()
    assert np.abs(unchanged - expected).max() > 0.1 * expected.std()


def test_an_adapter_of_a_folder(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", **GROUPED)
    lora = adapter(tmp_path / "lora", linear("model.layers.1.self_attn.k_proj", 20, 48))
    folder = resolve(base, adapter=lora, log=lambda line: None)
    assert "lm_head.weight" not in open_checkpoint(folder).tensors  # still tied
    assert resolve(base) == base
