from __future__ import annotations

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
