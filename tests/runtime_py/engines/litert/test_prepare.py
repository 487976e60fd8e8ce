"""Packed weights of large models in the disk cache, with toys that count as large."""

from __future__ import annotations

import fcntl
import math
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from o2o.errors import ModelError
from o2o.streams.disk_cache import DiskCache
from runtime_py.engines import model_file, prepared_artifacts
from runtime_py.engines.litert import pack as pack_module
from runtime_py.engines.litert import prepare as prepare_module
from runtime_py.engines.litert.engine import LiteRtEngine
from runtime_py.engines.litert.lowered_file import LoweringOptions
from runtime_py.engines.litert.prepare import PreparedModel
from runtime_py.engines.model_file import ModelFile
from runtime_py.engines.options import EngineOptions
from runtime_py.model.contract import Contract
from tests.runtime_py.engines.litert.test_lowered_file import write_circle
from tests.runtime_py.toy import Toy
from tests.tolerances import assert_close

VOCAB = 300
TICK = 0.02  # seconds, more than what file times are counted in


@pytest.fixture
def cache(tmp_path, monkeypatch) -> DiskCache:
    monkeypatch.setattr(prepared_artifacts, "MIN_BYTES", 0)
    return DiskCache(tmp_path / "cache")


@pytest.fixture
def log_lines() -> list[str]:
    return []


def lower_and_pack(file: Path, entry: Path, lowering: LoweringOptions) -> None:
    """What the child processes do."""
    pack_module.lower(file, entry, lowering)
    pack_module.pack(file, entry)


@pytest.fixture
def pack_in_this_process(monkeypatch) -> None:
    """For tests of what the disk cache serves: the child itself runs in the others."""
    monkeypatch.setattr(pack_module, "silence_at_exit", lambda: None)
    monkeypatch.setattr(prepare_module, "lower_and_pack_in_child", lower_and_pack)


@pytest.fixture(params=["circle", "tflite"])
def model(request, tmp_path) -> Path:
    return write(toy(), tmp_path / f"model.{request.param}")


def prepare(file: Path, cache: DiskCache | None, log: Callable[[str], None]) -> PreparedModel:
    options = EngineOptions(disk_cache=cache, log=log)
    with prepare_module.prepare(ModelFile(file), options) as prepared:
        return prepared


def toy(seed: int = 0) -> Toy:
    return Toy(vocab=VOCAB, cached_lengths=[3, 2], seed=seed)


def write(toy: Toy, path: Path) -> Path:
    if path.suffix == ".circle":
        return write_circle(toy, path)
    path.write_bytes(toy.file)
    return path


def assert_answers(toy: Toy, prepared: PreparedModel) -> None:
    for threads in (1, 2):
        contract = Contract.parse(prepared.lowered.contract)
        engine = LiteRtEngine(prepared.open(), contract, packed=prepared.packed, threads=threads)
        session = engine.open_session()
        tokens = [7, 299, 3, 5, 8, 1, 0]
        for count in (1, 2, 7):
            wanted = toy.logits(tokens[:count])
            assert_close(session.prefill(tokens[:count]), wanted)
        engine.close()


def forbid(monkeypatch, *names: str) -> None:
    def fail(*args):
        pytest.fail("was done again")

    for name in names:
        monkeypatch.setattr(model_file if hasattr(model_file, name) else prepare_module, name, fail)


def entries(cache: DiskCache) -> list[str]:
    return sorted(path.name for path in cache.folder.iterdir()) if cache.folder.exists() else []


def test_done_once(model, cache, log_lines, monkeypatch):
    first = prepare(model, cache, log_lines.append)
    assert_answers(toy(), first)
    assert log_lines == [f"packing the weights once: up to 1 MB into {cache.folder}"]
    forbid(monkeypatch, "lower_file", "lower_and_pack_in_child")
    second = prepare(model, cache, log_lines.append)
    assert (second.lowered, second.packed) == (first.lowered, first.packed)
    assert second.packed == cache.folder / entries(cache)[0] / "packed"
    written = second.packed.stat()
    assert_answers(toy(), second)
    assert second.packed.stat().st_mtime_ns == written.st_mtime_ns  # only read
    assert len(log_lines) == 1


@pytest.mark.usefixtures("pack_in_this_process")
def test_other_weights_in_the_same_place(model, cache, log_lines):
    """The new file has the size and the modification time of the old one."""
    prepare(model, cache, log_lines.append)
    before = model.stat()
    time.sleep(TICK)
    write(toy(1), model)
    os.utime(model, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert model.stat().st_size == before.st_size
    assert_answers(toy(1), prepare(model, cache, log_lines.append))
    assert len(entries(cache)) == 1  # the outdated one is removed


def test_the_same_model_elsewhere(model, cache, log_lines, monkeypatch):
    """A copy is digested once, and then recognized."""
    first = prepare(model, cache, log_lines.append)
    time.sleep(TICK)
    copy = model.with_name(f"copy{model.suffix}")
    copy.write_bytes(model.read_bytes())
    forbid(monkeypatch, "lower_file", "lower_and_pack_in_child")
    second = prepare(copy, cache, log_lines.append)
    assert second.packed == first.packed
    assert_answers(toy(), second)
    forbid(monkeypatch, "file_digest")
    assert prepare(copy, cache, log_lines.append).packed == second.packed
    assert prepare(model, cache, log_lines.append).packed == first.packed
    assert len(log_lines) == 1


@pytest.mark.usefixtures("pack_in_this_process")
def test_a_model_that_changes_while_it_is_read(model, cache, log_lines, monkeypatch):
    """The digest is of other bytes than the file has: the artifacts must not serve the file later."""
    other = prepare(write(toy(1), model.with_name(f"other{model.suffix}")), cache, log_lines.append)
    file_digest = model_file.file_digest

    def changed(file: Path) -> str:
        digest = file_digest(other.model.path)
        time.sleep(TICK)
        write(toy(2), file)
        return digest

    monkeypatch.setattr(model_file, "file_digest", changed)
    with pytest.raises(ModelError, match="was changed while it was loaded: try again"):
        prepare(model, cache, log_lines.append).open()
    monkeypatch.setattr(model_file, "file_digest", file_digest)
    assert_answers(toy(2), prepare(model, cache, log_lines.append))


@pytest.mark.usefixtures("pack_in_this_process")
@pytest.mark.parametrize("changed", ["processor_features", "code_digest"])
def test_another_machine_or_another_lowering(model, cache, log_lines, monkeypatch, changed):
    first = prepare(model, cache, log_lines.append)
    monkeypatch.setattr(prepared_artifacts, changed, lambda: "changed")
    second = prepare(model, cache, log_lines.append)
    assert second.packed != first.packed
    assert_answers(toy(), second)


@pytest.mark.usefixtures("pack_in_this_process")
@pytest.mark.parametrize("name", ["packed", "lowered.json", "entry.json"])
@pytest.mark.parametrize("size", [0, 100])
def test_damaged(model, cache, log_lines, name, size):
    packed = prepare(model, cache, log_lines.append).packed
    time.sleep(TICK)
    os.truncate(packed.with_name(name), size)
    assert_answers(toy(), prepare(model, cache, log_lines.append))


@pytest.mark.usefixtures("pack_in_this_process")
def test_weights_overwritten(model, cache, log_lines):
    packed = prepare(model, cache, log_lines.append).packed
    time.sleep(TICK)
    packed.write_bytes(bytes(packed.stat().st_size))
    assert_answers(toy(), prepare(model, cache, log_lines.append))


def test_small_models_keep_a_graph_that_takes_long(model, tmp_path, log_lines, monkeypatch):
    monkeypatch.setattr(prepared_artifacts, "MIN_SECONDS", 1e-9)
    monkeypatch.setattr(prepare_module, "_seconds_to_compile", lambda *_: 0.0)
    cache = DiskCache(tmp_path / "cache")
    first = prepare(model, cache, log_lines.append)
    forbid(monkeypatch, "lower_file", "lower_and_pack_in_child")
    second = prepare(model, cache, log_lines.append)
    assert second.lowered == first.lowered
    assert second.packed is None
    assert_answers(toy(), second)
    cache.clear()
    cache.folder.rmdir()
    cache.folder.write_bytes(b"")  # no folder can be made
    monkeypatch.undo()
    assert_answers(toy(), prepare(model, cache, log_lines.append))
    assert log_lines == []


@pytest.mark.usefixtures("pack_in_this_process")
def test_small_models_keep_weights_that_take_long_to_pack(model, tmp_path, log_lines, monkeypatch):
    monkeypatch.setattr(prepared_artifacts, "MIN_SECONDS", 1000)
    monkeypatch.setattr(prepare_module, "_seconds_to_compile", lambda *_: 1001.0)
    prepared = prepare(model, DiskCache(tmp_path / "cache"), log_lines.append)
    assert prepared.packed is not None
    assert prepared.is_proven
    assert_answers(toy(), prepared)


def test_small_models_that_litert_refuses_are_not_kept(model, tmp_path, log_lines, monkeypatch):
    monkeypatch.setattr(prepared_artifacts, "MIN_SECONDS", 0)
    monkeypatch.setattr(prepare_module, "_seconds_to_compile", lambda *_: None)
    prepared = prepare(model, DiskCache(tmp_path / "cache"), log_lines.append)
    assert not prepared.is_proven
    assert not (tmp_path / "cache").exists()


def test_small_models_leave_no_files(model, tmp_path, log_lines, monkeypatch):
    monkeypatch.setattr(prepared_artifacts, "MIN_SECONDS", math.inf)
    cache = DiskCache(tmp_path / "cache")
    before = sorted(tmp_path.rglob("*"))
    assert_answers(toy(), prepare(model, cache, log_lines.append))
    assert sorted(tmp_path.rglob("*")) == before
    assert log_lines == []


def test_without_a_cache(model, tmp_path, log_lines, monkeypatch):
    monkeypatch.setattr(prepared_artifacts, "MIN_BYTES", 0)
    before = sorted(tmp_path.rglob("*"))
    assert_answers(toy(), prepare(model, None, log_lines.append))
    assert sorted(tmp_path.rglob("*")) == before
    assert log_lines == []


def assert_packs_in_memory(model: Path, cache: DiskCache, log_lines: list[str], reason: str) -> None:
    prepared = prepare(model, cache, log_lines.append)
    assert prepared.packed is None
    assert_answers(toy(), prepared)
    assert log_lines[-1].startswith("packing the weights for this load only: ")
    assert reason in log_lines[-1]
    assert "\n" not in log_lines[-1]


def test_no_room(model, cache, log_lines):
    cache.max_share = 0
    assert_packs_in_memory(model, cache, log_lines, "bytes, and the cache may use 0")
    assert entries(cache) == []


def test_a_disk_that_becomes_full(model, cache, log_lines, monkeypatch):
    """LiteRT aborts its process then, so it must be a child."""
    packed = prepare(model, cache, log_lines.append).packed
    limit = max(file.stat().st_size for file in packed.parent.iterdir() if file != packed)
    assert packed.stat().st_size > limit
    cache.clear()
    pack = prepare_module.lower_and_pack_in_child

    def pack_in_little_room(*arguments) -> None:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            pack(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    monkeypatch.setattr(prepare_module, "lower_and_pack_in_child", pack_in_little_room)
    assert_packs_in_memory(model, cache, log_lines, "exit status -6")
    assert entries(cache) == []


def test_packing_that_fails(model, cache, log_lines, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert_packs_in_memory(model, cache, log_lines, "exit status 1")
    assert entries(cache) == []


def test_packing_that_makes_nothing(model, cache, log_lines, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/true")
    assert_packs_in_memory(model, cache, log_lines, "packed: No such file")
    assert entries(cache) == []


def test_a_folder_that_cannot_be_made(model, cache, log_lines):
    cache.folder.touch()
    assert_packs_in_memory(model, cache, log_lines, f"{cache.folder}: File exists")


@pytest.mark.usefixtures("pack_in_this_process")
def test_another_process_is_writing_it(model, cache, log_lines):
    prepare(model, cache, log_lines.append)
    (key,) = entries(cache)
    part = (cache.folder / key).rename(cache.folder / f"{key}.abcdefgh")
    lock = os.open(part, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert_packs_in_memory(model, cache, log_lines, "another process is writing this cache entry")
    os.close(lock)
    assert prepare(model, cache, log_lines.append).packed is not None


def test_a_model_that_changes_while_it_is_packed(model, cache, log_lines, monkeypatch):
    pack = prepare_module.lower_and_pack_in_child

    def slowly(file: Path, *arguments) -> None:
        pack(file, *arguments)
        time.sleep(TICK)
        write(toy(1), file)

    monkeypatch.setattr(prepare_module, "lower_and_pack_in_child", slowly)
    prepared = prepare(model, cache, log_lines.append)
    assert entries(cache) == []
    assert "changed while it was packed" in log_lines[-1]
    with pytest.raises(ModelError, match="was changed while it was loaded: try again"):
        prepared.open()
