from __future__ import annotations

import json
from pathlib import Path

import pytest

from export.checkpoint import INDEX, open_checkpoint, resolve
from o2o.errors import ModelError, UsageError
from tests.checkpoints import GROUPED, write_checkpoint


def test_a_folder_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("org/model") == Path("org/model")  # although it could be a hub id
    assert resolve(tmp_path) == tmp_path


@pytest.mark.parametrize(
    "name", ["./nope", "../nope/deeper", "/no/such", "~/no/such", "a/b/c", "nope/", "", "a b"]
)
def test_a_path_that_is_no_folder(name: str) -> None:
    with pytest.raises(UsageError, match="no such directory"):
        resolve(name)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UsageError, match="is a file"):
        resolve(tmp_path / "model.safetensors")


def test_a_hub_id_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ModelError, match=r"org/model is no directory here, and .* cannot be reached"
    ) as error:
        resolve("org/model")
    assert "\n" not in str(error.value)


def test_a_hub_id_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    repository = tmp_path / "models--org--model"
    snapshot = write_checkpoint(repository / "snapshots" / ("0" * 40), **GROUPED)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    # As the hub's client lays it out: names that link to files elsewhere.
    (repository / "blobs").mkdir()
    (snapshot / "model.safetensors").rename(repository / "blobs" / "abc")
    (snapshot / "model.safetensors").symlink_to(Path("../../blobs/abc"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))

    assert resolve("org/model") == snapshot
    assert "model.norm.weight" in open_checkpoint(snapshot).tensors


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
