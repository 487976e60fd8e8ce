"""A cached graph is used for its architecture, its options and this program alone, and never when damaged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from export import graph_cache
from export.graph_cache import GRAPH, GraphCache
from export.loading_flags import MODEL_FILE, NO_GRAPH_CACHE, VARIABLES
from export.traced_graph import TracedGraph
from o2o import formats
from o2o.streams.disk_cache import DiskCache
from o2o.weights.checkpoint import open_checkpoint
from tests.export.traced_toys import trace_toy, write_toy

OPTIONS: dict[str, Any] = {"tokens": 6, "context": 48}


@pytest.fixture
def cache(tmp_path: Path) -> DiskCache:
    return DiskCache(tmp_path / "cache")


def of(directory: Path, cache: DiskCache) -> GraphCache:
    return GraphCache(open_checkpoint(directory), cache)


def test_found_again_for_the_same_architecture(tmp_path: Path, cache: DiskCache) -> None:
    traced = trace_toy(6)
    first = of(write_toy(tmp_path / "a"), cache)
    assert first.get(OPTIONS) is None
    first.store(OPTIONS, traced)
    again = of(write_toy(tmp_path / "b", 1, eos_token_id=5, torch_dtype="bfloat16"), cache).get(OPTIONS)
    assert isinstance(again, TracedGraph)
    assert formats.dumps(again.model) == formats.dumps(traced.model)
    assert again.parameters.names == traced.parameters.names
    assert [entry.label for entry in cache.entries()] == ["graph: llama, 2 layers, prefill_6 of 48 tokens"]


def test_not_found_for_anything_else(
    tmp_path: Path, cache: DiskCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = of(write_toy(tmp_path / "a"), cache)
    first.store(OPTIONS, trace_toy(6))
    assert first.get(OPTIONS | {"tokens": 4}) is None
    assert of(write_toy(tmp_path / "b", rope_theta=1e6), cache).get(OPTIONS) is None
    other = write_toy(tmp_path / "c")
    tensors = load_file(other / "model.safetensors")
    save_file(tensors | {"model.bias": np.zeros(3, np.float32)}, other / "model.safetensors")
    assert of(other, cache).get(OPTIONS) is None
    monkeypatch.setattr(graph_cache, "_toolchain", lambda: ["a newer version"])
    assert first.get(OPTIONS) is None
    first.store(OPTIONS, trace_toy(6))
    assert len(cache.entries()) == 1, "the entry of the older version is removed"


@pytest.mark.parametrize("file", [GRAPH, graph_cache.RECORD])
def test_a_damaged_entry_is_not_used(tmp_path: Path, cache: DiskCache, file: str) -> None:
    graphs = of(write_toy(tmp_path / "a"), cache)
    graphs.store(OPTIONS, trace_toy(6))
    (entry,) = cache.entries()
    path = cache.folder / entry.key / file
    damaged = path.read_bytes().replace(b"head", b"heap")
    path.write_bytes(damaged)
    record = json.loads((path.parent / "entry.json").read_text())
    state = path.stat()
    record["files"][file] = [state.st_size, state.st_mtime_ns, state.st_ctime_ns]
    (path.parent / "entry.json").write_text(json.dumps(record))
    assert DiskCache(cache.folder).get(entry.key), "its size and times are those of the record"
    assert graphs.get(OPTIONS) is None


def test_ties_are_compared_again(tmp_path: Path, cache: DiskCache) -> None:
    names = ["model.words.weight", "model.head.weight"]
    traced = trace_toy(6)
    tied = replace(traced, parameters=replace(traced.parameters, ties=[names], are_ties_equal=False))
    different = write_toy(tmp_path / "a")
    of(different, cache).store(OPTIONS, tied)
    assert of(different, cache).get(OPTIONS) is not None
    equal = write_toy(tmp_path / "b")
    tensors = load_file(equal / "model.safetensors")
    save_file({name: tensors[names[0]].copy() for name in names}, equal / "model.safetensors")
    assert of(equal, cache).get(OPTIONS) is None


@pytest.mark.parametrize("flag", [NO_GRAPH_CACHE, MODEL_FILE])
def test_not_used(tmp_path: Path, cache: DiskCache, monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    directory = write_toy(tmp_path / "a")
    of(directory, cache).store(OPTIONS, trace_toy(6))
    monkeypatch.setenv(VARIABLES[flag], "1")
    graphs = of(directory, cache)
    assert graphs.get(OPTIONS) is None
    graphs.store(OPTIONS | {"tokens": 4}, trace_toy(4))
    assert len(cache.entries()) == 1
