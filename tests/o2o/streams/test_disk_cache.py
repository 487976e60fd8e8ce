"""Entries of the disk cache are complete, or absent."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path

import pytest

from o2o.streams.disk_cache import ENTRY, DiskCache, user_cache

TICK = 0.02  # seconds, more than what file times are counted in
ONE, TWO, THREE = "1" * 32, "2" * 32, "3" * 32


@pytest.fixture
def cache(tmp_path) -> DiskCache:
    return DiskCache(tmp_path / "cache")


def add(cache: DiskCache, key: str, source: str = "", size: int = 1000) -> Path:
    with cache.add(key, source or key, size) as entry:
        (entry / "data").write_bytes(bytes(size))
    return cache.folder / key


def names(cache: DiskCache) -> set[str]:
    return {path.name for path in cache.folder.iterdir()}


def test_added_and_found(cache):
    assert cache.get(ONE) is None
    with cache.add(ONE, "model", 5) as entry:
        (entry / "data").write_bytes(b"12345")
        assert cache.get(ONE) is None
    entry = cache.get(ONE)
    assert (entry / "data").read_bytes() == b"12345"
    assert cache.get(TWO) is None
    assert names(cache) == {ONE}


def test_aliases(cache, monkeypatch):
    assert cache.find_alias("a") is None
    add(cache, ONE)
    add(cache, TWO)
    cache.add_alias(ONE, "a")
    cache.add_alias(TWO, "b")
    cache.add_alias(TWO, "c")
    assert [cache.find_alias(alias) for alias in "abcd"] == [ONE, TWO, TWO, None]
    assert cache.get(ONE)
    assert cache.get(TWO), "an alias leaves the entry intact"
    monkeypatch.setattr("o2o.streams.disk_cache.MAX_ALIASES", 2)
    cache.add_alias(TWO, "b")
    cache.add_alias(TWO, "d")
    assert [cache.find_alias(alias) for alias in "bcd"] == [TWO, None, TWO]
    cache.add_alias(THREE, "e")  # which is not there
    assert names(cache) == {ONE, TWO}


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
def test_a_failed_entry_leaves_nothing(cache, error):
    def fail() -> None:
        with cache.add(ONE, "model", 5) as entry:
            (entry / "data").write_bytes(b"123")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert names(cache) == set()


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: os.truncate(entry / "data", 999),
        lambda entry: (entry / "data").write_bytes(b"\1" * 1000),
        lambda entry: (entry / "data").unlink(),
        lambda entry: (entry / "more").touch(),
        lambda entry: (entry / ENTRY).unlink(),
        lambda entry: (entry / ENTRY).write_text("{"),
        lambda entry: (entry / ENTRY).write_text("[]"),
        lambda entry: (entry / ENTRY).write_text("{}"),
    ],
)
def test_damaged_entries_are_removed(cache, damage):
    entry = add(cache, ONE)
    time.sleep(TICK)
    damage(entry)
    assert cache.get(ONE) is None
    assert names(cache) == set()
    assert cache.get(add(cache, ONE).name) is not None


def test_overwritten_in_place(cache):
    """The file has its old size and modification time."""
    file = add(cache, ONE) / "data"
    before = file.stat()
    time.sleep(TICK)
    file.write_bytes(b"\1" * 1000)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert cache.get(ONE) is None


def test_outdated_entries_are_removed(cache):
    add(cache, ONE, "model")
    add(cache, TWO, "another model")
    add(cache, THREE, "model")
    assert names(cache) == {TWO, THREE}


def limit(cache: DiskCache, monkeypatch, size: int) -> None:
    """Limit the cache to `size` bytes."""
    there = sum(file.stat().st_size for key in (ONE, TWO, THREE) for file in (cache.folder / key).glob("*"))
    result = os.statvfs_result([1, 1, 0, 0, 2 * size - there, 0, 0, 0, 0, 255])
    monkeypatch.setattr(os, "statvfs", lambda path: result)


def test_the_least_recently_used_are_removed(cache, monkeypatch):
    for age, key in enumerate([ONE, TWO, THREE]):
        os.utime(add(cache, key), (1000 - age, 1000 - age))
    assert cache.get(TWO) is not None  # is used now
    limit(cache, monkeypatch, 3600)
    add(cache, "4" * 32)
    assert names(cache) == {ONE, TWO, "4" * 32}


def test_no_room(cache, monkeypatch):
    add(cache, ONE)
    limit(cache, monkeypatch, 1500)
    with pytest.raises(OSError, match="it needs 1,501 bytes, and the cache may use 1,500") as error:
        add(cache, TWO, size=1501)
    assert error.value.errno == errno.ENOSPC
    assert names(cache) == {ONE}


def test_leftovers_of_a_killed_process_are_removed(cache):
    part = cache.folder / f"{ONE}.abcdefgh"
    part.mkdir(parents=True)
    (part / "data").touch()
    add(cache, TWO)
    assert names(cache) == {TWO}


def test_two_processes_at_once(cache):
    part = cache.folder / f"{ONE}.abcdefgh"
    part.mkdir(parents=True)
    lock = os.open(part, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(BlockingIOError, match="another process is writing this cache entry"):
        add(cache, ONE)
    add(cache, TWO)
    assert names(cache) == {part.name, TWO}
    os.close(lock)
    add(cache, ONE)
    assert names(cache) == {ONE, TWO}


def test_an_entry_that_another_process_has_removed(cache):
    entry = add(cache, ONE)
    with open(entry / "data", "rb") as file:
        add(cache, TWO, ONE)
        assert file.read() == bytes(1000)


def test_other_files_are_left_alone(cache, monkeypatch):
    """A user may name a folder that contains other files."""
    for name in (".ssh", "letters", "2024", f".{ONE}"):
        (cache.folder / name).mkdir(parents=True)
        (cache.folder / name / "file").write_bytes(bytes(5000))
    (cache.folder / ".profile").touch()
    before = names(cache)
    add(cache, ONE)
    limit(cache, monkeypatch, 1500)
    add(cache, TWO)
    assert names(cache) == {*before, TWO}


def test_location(monkeypatch, tmp_path):
    for name in ("O2O_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/lily")
    assert user_cache().folder == Path("/home/lily/.cache/o2o")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert user_cache().folder == Path("/home/lily/.cache/o2o")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/lily")
    assert user_cache().folder == Path("/var/cache/lily/o2o")
    monkeypatch.setenv("O2O_CACHE", str(tmp_path))
    assert user_cache().folder == tmp_path


def test_no_home(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    for name in ("O2O_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert user_cache() is None
