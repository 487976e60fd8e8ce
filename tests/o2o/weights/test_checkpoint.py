from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from export.model import LanguageModel
from export.parameter_matching import match_parameters
from o2o.errors import ModelError
from o2o.weights.checkpoint import adapter_file, open_checkpoint
from tests.checkpoints import GROUPED, write_checkpoint

FORMATS = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}


@pytest.mark.parametrize("format", FORMATS)
def test_shards_are_one_checkpoint(tmp_path: Path, format: str) -> None:
    one = open_checkpoint(write_checkpoint(tmp_path / "one", **GROUPED, format=format)).tensors
    three = open_checkpoint(write_checkpoint(tmp_path / "three", **GROUPED, format=format, shards=3)).tensors

    assert set(three) == set(one)
    assert len({tensor.path for tensor in three.values()}) == 3
    for name, tensor in three.items():
        assert (tensor.read_float32() == one[name].read_float32()).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shards", [1, 2])
def test_a_pickle_says_what_safetensors_say(tmp_path: Path, dtype: str, shards: int) -> None:
    plain = write_checkpoint(tmp_path / "plain", **GROUPED, dtype=dtype)
    pickle = write_checkpoint(tmp_path / "pickle", **GROUPED, dtype=dtype, shards=shards, format="bin")

    expected, got = open_checkpoint(plain).tensors, open_checkpoint(pickle).tensors

    assert set(got) == set(expected) | {"lm_head.weight"}  # tied: under both of its names
    for name, tensor in expected.items():
        assert (got[name].dtype, got[name].shape) == (tensor.dtype, tensor.shape)
        assert (got[name].read_float32() == tensor.read_float32()).all()
    model = LanguageModel.read(pickle)
    assert set(match_parameters(model, open_checkpoint(pickle))) == set(model.parameters)


@pytest.mark.parametrize("name", ["weights.pt", "consolidated.pth"])
def test_a_state_dict_under_any_name(tmp_path: Path, name: str) -> None:
    directory = write_checkpoint(tmp_path, **GROUPED, format="bin")
    (directory / "pytorch_model.bin").rename(directory / name)

    assert "model.norm.weight" in open_checkpoint(directory).tensors

    (directory / "optimizer.pt").touch()
    with pytest.raises(ModelError, match=rf"several files .*{name}.*: remove all but one"):
        open_checkpoint(directory)


def test_safetensors_come_first(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, **GROUPED)
    (directory / "pytorch_model.bin").write_bytes(b"not even a pickle")
    (directory / "pytorch_model.bin.index.json").write_bytes(b"nor an index")
    (directory / "weights.pt").touch()
    tensors = open_checkpoint(directory).tensors
    assert {tensor.path.name for tensor in tensors.values()} == {"model.safetensors"}


def test_no_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "training_args.bin").touch()
    with pytest.raises(ModelError, match=r"no weights: it needs \.safetensors"):
        open_checkpoint(tmp_path)


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("format", FORMATS)
def test_damaged_shards(tmp_path: Path, format: str) -> None:
    directory = write_checkpoint(tmp_path, **GROUPED, shards=2, format=format)
    index = directory / f"{FORMATS[format]}.index.json"
    stem, suffix = FORMATS[format].split(".")
    contents = json.loads(index.read_text())

    index.write_text(json.dumps({"weight_map": contents["weight_map"] | {"x": f"../../elsewhere.{suffix}"}}))
    with pytest.raises(ModelError, match="a shard outside its folder"):
        open_checkpoint(directory)

    shard = f"{stem}-00001-of-00002.{suffix}"
    index.write_text(json.dumps({"weight_map": contents["weight_map"] | {"x": shard}}))
    with pytest.raises(ModelError, match="lacks x, which the index lists"):
        open_checkpoint(directory)

    index.write_text("{}")
    with pytest.raises(ModelError, match="it has no object `weight_map`"):
        open_checkpoint(directory)

    index.write_text(json.dumps(contents))
    shutil.move(directory / f"{stem}-00002-of-00002.{suffix}", tmp_path / "away")
    with pytest.raises(ModelError, match=rf"lacks the shard {stem}-00002-of-00002\.{suffix}"):
        open_checkpoint(directory)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin", "adapter_config.json"])
def test_an_adapter_is_no_checkpoint(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    message = f"holds an adapter \\(LoRA\\) alone, {name}: give the base model, and this folder as --adapter"
    with pytest.raises(ModelError, match=f"has no config.json: it {message}"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=f"has no weights of a model: it {message}"):
        open_checkpoint(tmp_path)


def test_an_adapter_next_to_the_weights(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, **GROUPED)
    assert adapter_file(folder) is None
    (folder / "adapter_config.json").write_text("{}")
    assert adapter_file(folder) == "adapter_config.json"
    assert "model.norm.weight" in open_checkpoint(folder).tensors
