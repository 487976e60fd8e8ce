"""`o2o cache` lists, verifies and clears the disk cache."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from o2o.streams.disk_cache import DiskCache
from o2o.weights.cached_checkpoints import FOLDER, folder_name
from o2o.weights.derived_checkpoint import FILE, write_index
from o2o.weights.derived_tensor import Leaf
from o2o.weights.stored_tensor import StoredTensor
from runtime_py.cache import main

KEY, OTHER = "1" * 32, "2" * 32


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DiskCache:
    monkeypatch.setenv("O2O_CACHE", str(tmp_path / "cache"))
    cache = DiskCache(tmp_path / "cache")
    for key in (KEY, OTHER):
        with cache.add(key, key, 5_000_000, f"litert: /models/{key[0]}.tflite") as folder:
            (folder / "data").write_bytes(bytes(5_000_000))
    os.utime(cache.folder / KEY, (0, 0))
    return cache


def test_list(cache: DiskCache, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    newest, oldest, total = capsys.readouterr().out.splitlines()
    assert newest.split()[0] == OTHER[:12]
    assert oldest.endswith("litert: /models/1.tflite")
    assert "5.0 MB" in oldest
    assert total == f"{cache.folder}: 2 entries, 10.0 MB"


def test_verify(cache: DiskCache, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify"]) == 0
    assert capsys.readouterr().out.count("intact") == 3
    os.truncate(cache.folder / KEY / "data", 100)
    assert main(["verify"]) == 1
    captured = capsys.readouterr()
    assert f"{KEY[:12]} " in next(line for line in captured.out.splitlines() if "damaged" in line)
    assert captured.err.startswith(f"cache: {cache.folder}: 1 damaged entry: the next load")


def test_clear_keeps_files_of_others(cache: DiskCache, capsys: pytest.CaptureFixture[str]) -> None:
    (cache.folder / "notes").write_text("mine")
    assert main(["clear"]) == 0
    assert capsys.readouterr().out == f"{cache.folder}: removed 10.0 MB\n"
    assert [path.name for path in cache.folder.iterdir()] == ["notes"]
    assert main(["list"]) == 0
    assert capsys.readouterr().out == f"{cache.folder}: 0 entries, 0.0 MB\n"


@pytest.fixture
def gguf(cache: DiskCache, tmp_path: Path) -> Path:
    """A file, and a derived checkpoint in the cache that refers to it."""
    path = tmp_path / "tiny.gguf"
    path.write_bytes(bytes(64))
    folder = cache.folder / FOLDER / folder_name("tiny", "ab" * 32)
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_bytes(bytes(2_000_000))
    write_index(folder / FILE, {"w": Leaf(StoredTensor("w", path, "F32", (16,), 0, 64))})
    return path


def test_derived_checkpoints_are_listed(
    cache: DiskCache, gguf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([]) == 0
    *_, line, total = capsys.readouterr().out.splitlines()
    assert line.startswith("abababababab  ")
    assert "2.0 MB" in line
    assert line.endswith("checkpoint: tiny")
    assert total == f"{cache.folder}: 3 entries, 12.0 MB"


def test_a_derived_checkpoint_of_a_changed_file_is_outdated(
    cache: DiskCache, gguf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify"]) == 0
    gguf.write_bytes(bytes(128))
    capsys.readouterr()
    assert main(["verify"]) == 1
    captured = capsys.readouterr()
    assert "outdated" in captured.out.splitlines()[-1]
    assert captured.err.startswith(f"cache: {cache.folder}: 1 outdated entry: the next load or conversion")


def test_derived_checkpoints_are_cleared(
    cache: DiskCache, gguf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (cache.folder / FOLDER / "mine").mkdir()
    assert main(["clear"]) == 0
    assert capsys.readouterr().out == f"{cache.folder}: removed 12.0 MB\n"
    assert [path.name for path in (cache.folder / FOLDER).iterdir()] == ["mine"]
    assert gguf.exists()


def test_no_cache_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("O2O_CACHE", str(tmp_path / "none"))
    for action in ("list", "verify", "clear"):
        assert main([action]) == 0
    assert not (tmp_path / "none").exists()
