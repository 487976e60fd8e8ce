"""`o2o cache` lists, verifies and clears the disk cache."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime_py.cache import main
from runtime_py.engines.disk_cache import DiskCache

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


def test_no_cache_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("O2O_CACHE", str(tmp_path / "none"))
    for action in ("list", "verify", "clear"):
        assert main([action]) == 0
    assert not (tmp_path / "none").exists()
