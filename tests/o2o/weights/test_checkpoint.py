from __future__ import annotations

import json
from pathlib import Path

import pytest

from o2o.errors import ModelError
from o2o.weights.checkpoint import INDEX, open_checkpoint
from tests.checkpoints import GROUPED, write_checkpoint


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    one = open_checkpoint(write_checkpoint(tmp_path / "one", **GROUPED)).tensors
    three = open_checkpoint(write_checkpoint(tmp_path / "three", **GROUPED, shards=3)).tensors

    assert set(three) == set(one)
    assert len({tensor.path for tensor in three.values()}) == 3
    for name, tensor in three.items():
        assert (tensor.read_float32() == one[name].read_float32()).all()


@pytest.mark.parametrize(
    ("file", "complaint"),
    [
        (None, "has no weights"),
        ("pytorch_model.bin", r"pickles \(\.bin\) only: convert them"),
        ("pytorch_model-00001-of-00002.bin", "convert them"),
    ],
)
def test_no_weights(tmp_path: Path, file: str | None, complaint: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    if file:
        (tmp_path / file).touch()
    with pytest.raises(ModelError, match=complaint):
        open_checkpoint(tmp_path)


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json"):
        open_checkpoint(tmp_path)


def test_damaged_shards(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, **GROUPED, shards=2)
    index = directory / INDEX
    told = json.loads(index.read_text())

    index.write_text(json.dumps({"weight_map": told["weight_map"] | {"x": "../../elsewhere.safetensors"}}))
    with pytest.raises(ModelError, match="a shard outside its folder"):
        open_checkpoint(directory)

    index.write_text(
        json.dumps({"weight_map": told["weight_map"] | {"x": "model-00001-of-00002.safetensors"}})
    )
    with pytest.raises(ModelError, match="lacks x, which the index says"):
        open_checkpoint(directory)

    index.write_text("{}")
    with pytest.raises(ModelError, match="no table `weight_map`"):
        open_checkpoint(directory)

    index.write_text(json.dumps(told))
    (directory / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"lacks the shard model-00002-of-00002\.safetensors"):
        open_checkpoint(directory)
