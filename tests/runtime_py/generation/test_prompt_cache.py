"""The prompt cache: later texts continue from stored rows; damaged and foreign ones are not used."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from o2o import formats
from o2o.errors import UsageError
from o2o.streams.disk_cache import DiskCache
from runtime_py.engines.options import EngineOptions
from runtime_py.engines.registry import installed
from runtime_py.generation import prompt_cache
from runtime_py.generation.prompt_cache import FILE, FOLDER
from runtime_py.package import Package
from tests.o2o.window_graphs import WINDOW, S, T, V, logits_of, window_model
from tests.runtime_py.generation.test_generate import Digits
from tests.tolerances import assert_close

IDS = np.random.default_rng(1).integers(0, V, S).tolist()
STORED, ROWS = 24, 14


@pytest.fixture(scope="module", params=["full", "window"])
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("model") / "model.circle"
    rows = ROWS if request.param == "window" else None
    formats.save(window_model(rows, [T, 1], (WINDOW, 0)), file)
    return file


@pytest.fixture
def cache(tmp_path: Path) -> DiskCache:
    return DiskCache(tmp_path / "cache")


def opened(file: Path, engine: str = "litert", cache: DiskCache | None = None, **options: Any) -> Package:
    package = Package.load(file, options=EngineOptions(engine=engine, disk_cache=cache, **options))
    package.tokenizer = Digits()  # type: ignore[assignment, misc]
    return package


def computed(package: Package, ids: Sequence[int]) -> int:
    """Read a prompt in a new session. Its logits must be right. Return how many tokens were computed."""
    with package.session() as session:
        assert_close(session.read(ids), logits_of(ids, (WINDOW, 0))[-1])
        count = len(ids) - session.runs[0].start
        for token in range(3):
            assert_close(session.append(token), logits_of([*ids, *range(token + 1)], (WINDOW, 0))[-1])
        return count


@pytest.mark.parametrize("by", installed())
@pytest.mark.parametrize("engine", installed())
def test_on_all_engines(file: Path, cache: DiskCache, by: str, engine: str) -> None:
    if "onert" in (by, engine) and "litert" not in (by, engine):
        pytest.skip("onert is slow: once from LiteRT, and once to it")
    with opened(file, by, cache) as package:
        package.remember(IDS[:STORED])
    with opened(file, engine, cache) as package:
        assert computed(package, IDS[: STORED + 6]) <= 6 + T


def test_the_longest_prefix(file: Path, cache: DiskCache) -> None:
    with opened(file, "onnx", cache) as package:
        for length in (10, STORED, 40):
            package.remember(IDS[:length])
        with package.session() as session:
            has_windows = session.pool.engine.contract.decode.window is not None
    for text, used in {
        (*IDS[:30],): STORED if has_windows else 29,
        (*IDS, 1)[:45]: 40,
        (*IDS[:12], (IDS[12] + 1) % V, 5): 10 if has_windows else 12,
    }.items():
        with opened(file, "onnx", cache) as package:
            assert computed(package, text) == len(text) - used


def test_in_the_package(file: Path, tmp_path: Path) -> None:
    """A copy of the folder has it, too. Nothing is in a disk cache."""
    shutil.copy(file, tmp_path / file.name)
    with opened(tmp_path / file.name) as package:
        stored = package.remember(IDS[:STORED], in_package=True)
        assert stored.parent == tmp_path / FOLDER
        with pytest.raises(UsageError, match="no disk cache"):
            package.remember(IDS[:STORED])
    shutil.copytree(tmp_path, tmp_path / "copy")
    with opened(tmp_path / "copy" / file.name) as package:
        assert computed(package, IDS[: STORED + 1]) <= 1 + T


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def _change_header(path: Path) -> None:
    content = path.read_bytes()
    assert content.count(b'"lowest":"') == 1
    path.write_bytes(content.replace(b'"engine":"litert"', b'"engine":"liTert"'))


DAMAGES: dict[str, Callable[[Path], None]] = {
    "a bit": _flip,
    "the end": _truncate,
    "the header": _change_header,
    "all": lambda path: path.write_bytes(b"\x00" * 30),
    "a folder": lambda path: (path.unlink(), path.mkdir())[1],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_not_used(file: Path, tmp_path: Path, damage: str) -> None:
    shutil.copy(file, tmp_path / file.name)
    with opened(tmp_path / file.name) as package:
        stored = package.remember(IDS[:STORED], in_package=True)
    DAMAGES[damage](stored)
    with opened(tmp_path / file.name) as package:
        assert computed(package, IDS[: STORED + 1]) == STORED + 1


def test_one_of_another_model_is_not_used(file: Path, tmp_path: Path) -> None:
    shutil.copy(file, tmp_path / file.name)
    with opened(tmp_path / file.name) as package:
        package.remember(IDS[:STORED], in_package=True)
    with open(tmp_path / file.name, "ab") as changed:
        changed.write(bytes(16))
    with opened(tmp_path / file.name) as package:
        assert computed(package, IDS[: STORED + 1]) == STORED + 1


def test_rows_of_quantized_models_belong_to_one_engine(file: Path, cache: DiskCache) -> None:
    with opened(file, "litert", cache) as package, package.session() as session:
        prompts = session.pool.prompts
        assert prompts is not None
        package.remember(IDS[:STORED])
        window = session.pool.engine.contract.decode.window
        assert replace(prompts, engine="onnx").find(IDS, 8, window) is not None
        assert replace(prompts, engine="onnx", weight_dtype=lambda: "int8").find(IDS, 8, window) is None


def test_the_size_is_limited(file: Path, cache: DiskCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompt that was used least recently is removed. Other entries of the disk cache stay."""
    with cache.add("a" * 32, "other", 10) as entry:
        (entry / "data").write_bytes(bytes(10))
    with opened(file, "onnx", cache) as package:
        first = package.remember(IDS[:20])
        monkeypatch.setattr(prompt_cache, "MAX_BYTES", int(2.5 * first.stat().st_size))
        second, third = package.remember(IDS[:21]), package.remember(IDS[:22])
    assert sorted(cache.files(FILE)) == sorted([second, third])
    assert cache.get("a" * 32) is not None
