"""The derived checkpoint of a model of one's own: sizes, weights, tokenizer; from a folder or one file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from export.config import CheckpointConfig
from export.hub import resolve
from export.loading_flags import STRICT, VARIABLES
from export.model_traits import targets, traits
from export.preflight import check_model
from o2o.errors import ModelError, UsageError
from o2o.weights.checkpoint import open_checkpoint
from tests.export.authoring.conftest import BLOCKS, PLAIN


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("O2O_CACHE", str(tmp_path / "cache"))


def test_a_state_dict(with_weights: Any) -> None:
    _, weights, model = with_weights(BLOCKS)
    folder = resolve(weights)
    config = CheckpointConfig.read(folder)
    check_model(config, folder)
    assert (config.model_type, config.layers, config.vocab_size, config.positions) == ("mine", 3, 40, 64)
    assert (config.heads, config.kv_heads, config.head_dim) == (6, 3, 6)
    tensors = open_checkpoint(folder).tensors
    state = model.state_dict()
    assert {f"model.{name}" for name in state} - set(tensors) == {"model.lm_head.weight"}  # tied
    for name, tensor in tensors.items():
        assert np.array_equal(tensor.read_float32(), state[name.removeprefix("model.")].numpy())
    assert resolve(folder) == folder


def test_a_folder(with_weights: Any, tmp_path: Path) -> None:
    path, _, model = with_weights(PLAIN)
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(
        {f"old.{name}": tensor for name, tensor in model.state_dict().items()}, folder / "model.safetensors"
    )
    (folder / "config.json").write_text(json.dumps({"model_type": "other", "eos_token_id": 7}))
    (folder / "tokenizer.json").write_text("{}")
    with path.open("a") as file:
        file.write(
            "TENSOR_NAMES = {name: f'old.{name}' for name in Model(get_model_config({})).state_dict()}\n"
        )
    derived = resolve(folder)
    fields = json.loads((derived / "config.json").read_text())
    assert (fields["model_type"], fields["eos_token_id"]) == ("mine", 7)
    assert (derived / "tokenizer.json").is_file()
    assert len(open_checkpoint(derived).tensors) == len(load_file(folder / "model.safetensors"))


def test_a_file_named_as_a_model_of_transformers(with_weights: Any) -> None:
    _, weights, _ = with_weights(PLAIN, "dbrx.py")  # a mixture of experts there
    folder = resolve(weights)
    config = CheckpointConfig.read(folder)
    check_model(config, folder)
    assert config.model_type == "own_dbrx"


def test_a_changed_model_file_derives_again(with_weights: Any) -> None:
    path, weights, _ = with_weights(PLAIN)
    assert CheckpointConfig.read(resolve(weights)).positions == 32
    path.write_text(
        PLAIN.replace(
            "self.positions = nn.Embedding(config.max", "self.positions = nn.Embedding(2 * config.max"
        ).replace("max_position_embeddings=32", "max_position_embeddings=16")
    )
    assert CheckpointConfig.read(resolve(weights)).positions == 16


def test_tensors_that_the_model_does_not_use(with_weights: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, weights, model = with_weights(PLAIN)
    torch.save(model.state_dict() | {"extra": torch.zeros(2)}, weights)
    lines: list[str] = []
    resolve(weights, log=lines.append)
    assert lines == ["weights.pt: skipped 1 tensor without a parameter: extra (--strict refuses them)"]
    monkeypatch.setenv(VARIABLES[STRICT], "1")
    with pytest.raises(ModelError, match="1 tensor without a parameter: extra"):
        resolve(weights)


def test_tensors_that_do_not_fit(with_weights: Any) -> None:
    _, weights, model = with_weights(PLAIN)
    state = model.state_dict()
    state["layers.0.q.wieght"] = state.pop("layers.0.q.weight")
    torch.save(state, weights)
    with pytest.raises(ModelError, match=r"mine.py: .*the nearest name is 'layers.0.q.wieght'"):
        resolve(weights)


def test_without_the_flag_a_file_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "weights.pt")
    with pytest.raises(UsageError, match="is a file"):
        resolve(tmp_path / "weights.pt")


def test_the_plan_says_nothing_that_it_does_not_know(with_weights: Any) -> None:
    _, weights, _ = with_weights(PLAIN)  # with learned positions and a head that is tied by hand
    folder = resolve(weights)
    config, tensors = CheckpointConfig.read(folder), open_checkpoint(folder).tensors
    assert traits(config, tensors) == [
        "grouped-query attention (4 query heads of 6 over 2)",
        "defined by a Python file",
    ]
    assert "o2o.attention, or Circle's ATTENTION if" in targets(config, tensors)[0]
