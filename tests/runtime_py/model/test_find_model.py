"""Which file of a folder is the model, and what the files beside it say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runtime_py.model.find_model import files_folder, find_model
from runtime_py.model.model_config import ModelConfig, read_model_config

MERGED = "decoder_model_merged.onnx"
PAIR = ["decoder_model.onnx", "decoder_with_past_model.onnx"]


@pytest.mark.parametrize(
    ("files", "found_file"),
    [
        (["model.onnx", "model.circle"], "model.circle"),
        ([MERGED, *PAIR], MERGED),
        (PAIR, PAIR[0]),
        (["onnx/model.onnx", "onnx/model_q4.onnx"], "onnx/model.onnx"),
        (["tiny.onnx"], "tiny.onnx"),
        (["one.onnx", "two.onnx"], None),
        ([], None),
    ],
)
def test_the_model_of_a_folder(files: list[str], found_file: str | None, tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    for name in files:
        (tmp_path / name).touch()
    assert find_model(tmp_path) == (tmp_path / found_file if found_file else None)


def test_genai_config_names_the_model_and_its_sizes(tmp_path: Path) -> None:
    decoder = {"filename": "phi.onnx", "head_size": 16, "num_key_value_heads": 2, "num_attention_heads": 4}
    config = {"model": {"context_length": 77, "decoder": decoder}}
    (tmp_path / "genai_config.json").write_text(json.dumps(config))
    for name in ("phi.onnx", "other.onnx"):
        (tmp_path / name).touch()
    assert find_model(tmp_path) == tmp_path / "phi.onnx"
    assert read_model_config(tmp_path / "phi.onnx") == ModelConfig(77, 2, 16)


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        ({"max_position_embeddings": 9, "hidden_size": 8, "num_attention_heads": 4}, ModelConfig(9, 4, 2)),
        ({"n_positions": 9, "n_embd": 8, "n_head": 2}, ModelConfig(9, 2, 4)),
        ({"text_config": {"max_position_embeddings": 5, "head_dim": 3}}, ModelConfig(5, None, 3)),
        ({"max_position_embeddings": "many"}, ModelConfig()),
        ([], ModelConfig()),
    ],
)
def test_config_json_says_sizes(config: object, sizes: ModelConfig, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_model_config(tmp_path / "onnx" / "model.onnx") == sizes
    assert files_folder(tmp_path / "onnx" / "model.onnx") == tmp_path
