from __future__ import annotations

import shutil
from fnmatch import fnmatch
from pathlib import Path

import pytest

from export.hub import resolve
from o2o.errors import ModelError, UsageError
from o2o.weights.checkpoint import open_checkpoint
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
    with pytest.raises(UsageError, match="no such folder"):
        resolve(name)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UsageError, match="is a file"):
        resolve(tmp_path / "model.safetensors")


def test_a_hub_id_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"org/model is no local folder, and .* cannot be reached") as error:
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


@pytest.mark.parametrize(
    ("there", "fetched"),
    [
        (["model.safetensors", "pytorch_model.bin", "old.pth"], ["model.safetensors"]),
        (
            [
                "pytorch_model-00001-of-00001.bin",
                "pytorch_model.bin.index.json",
                "training_args.bin",
                "old.pth",
            ],
            ["pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json"],
        ),
        (["weights.pth", "model.gguf"], ["weights.pth"]),
        (["model.gguf", "onnx/model.onnx"], []),
    ],
)
def test_weights_are_fetched_in_one_form(
    there: list[str], fetched: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    hub, here = tmp_path / "hub", tmp_path / "here"
    for name in ["config.json", "tokenizer.json", "README.md", *there]:
        (hub / name).parent.mkdir(parents=True, exist_ok=True)
        (hub / name).touch()

    def snapshot_download(hub_id: str, allow_patterns: list[str]) -> str:
        for name in (str(file.relative_to(hub)) for file in hub.rglob("*") if file.is_file()):
            if any(fnmatch(name, pattern) for pattern in allow_patterns):
                (here / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(hub / name, here / name)
        return str(here)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert resolve("org/model") == here
    got = sorted(str(file.relative_to(here)) for file in here.rglob("*") if file.is_file())
    assert got == sorted(["config.json", "tokenizer.json", *fetched])
