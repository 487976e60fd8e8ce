"""Several prefills and a decode over one set of weights and one set of caches, from export to tokens."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.package_files import copy_package_files
from o2o import formats
from o2o.contract import contract_of
from o2o.filters import (
    downcast_input_ids,
    fuse_attention,
    fuse_bmm_lhs_const,
    gc,
    merge_circles,
    reshape_io,
    transpose_io_kvcache,
)
from o2o.formats.tensors import storage_key
from o2o.lower.litert import lower_to_litert
from runtime_py.package import Package
from tests.checkpoints import GROUPED
from tests.exported import checkpoint
from tests.test_guide import WITHOUT_TOKENIZER, assert_generates_the_same

PREFILLS = ("prefill_4", "prefill_8", "prefill_32")  # the last is as long as the caches


def through(source: Path, folder: Path, name: str, *filters: tuple[Any, ...]) -> Path:
    """`source` through filters, each (module, argument, ...), as folder/name.circle."""
    for number, (filter_, *arguments) in enumerate(filters):
        target = folder / f"{name}.{number}.circle"
        assert filter_.main([*arguments, str(source), "-o", str(target)]) == 0
        source = target
    return source.rename(folder / f"{name}.circle")


@pytest.fixture(scope="module", params=["concat", "static"])
def merged(request: pytest.FixtureRequest, exported_model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's model, its decode exported in either form."""
    tmp_path = tmp_path_factory.mktemp(request.param)
    fuse, turn = (fuse_attention,), (transpose_io_kvcache,)
    more_rows = (reshape_io, "input", "--by_shape", "[1,2,30,10]", "[1,2,32,10]")
    parts = [through(exported_model("grouped", name), tmp_path, name, fuse, turn) for name in PREFILLS]
    rows = (more_rows,) if request.param == "concat" else ()
    decode = exported_model("grouped", request.param)
    parts.append(through(decode, tmp_path, "decode", fuse, *rows, turn))
    joined = tmp_path / "joined.circle"
    assert merge_circles.main([*map(str, parts), "-o", str(joined), "--check"]) == 0
    return through(joined, tmp_path, "model", (fuse_bmm_lhs_const,), (downcast_input_ids,), (gc,))


def test_one_set_of_weights_and_caches(merged: Path) -> None:
    model = formats.load(merged)
    assert [signature.name for signature in model.signatures] == [*PREFILLS, "decode"]
    for operator in ("SOFTMAX", "BATCH_MATMUL", "TRANSPOSE", "DYNAMIC_UPDATE_SLICE"):
        assert all(node.op_type != operator for graph in model.graphs for node in graph)
    stored = Counter()
    for storage, raw in {
        storage_key(value.const_value): value.const_value.tobytes()  # type: ignore[union-attr, arg-type]
        for graph in model.graphs
        for value in graph.initializers.values()
    }.items():
        assert storage is not None
        stored[raw] += 1
    assert set(stored.values()) == {1}, "no constant, large or small, is there twice"
    for graph in model.graphs:
        assert sum(name.endswith(".weight") for name in map(str, graph.initializers)) == 3 * 9 + 2
    signatures = contract_of(model)["signatures"].values()
    caches = [
        [end for end in entry_point["inputs"] if end["role"].endswith("_cache")] for entry_point in signatures
    ]
    assert [cache["name"] for cache in caches[0]] == [
        f"past_{k}_{n}" for n in range(3) for k in ("key", "value")
    ]
    assert caches[0][0]["layout"] == "BTNH"
    assert caches[0][0]["shape"] == [1, 32, 2, 10]
    assert all(found == caches[0] for found in caches)
    assert all([end["name"] for end in entry_point["outputs"]] == ["logits"] for entry_point in signatures)


def test_lowered_signatures_write_the_same_caches(merged: Path) -> None:
    model = lower_to_litert(formats.load(merged))
    ends = [entry_point["outputs"] for entry_point in contract_of(model)["signatures"].values()]
    assert [end["name"] for end in ends[0][:3]] == ["logits", "present_key_0", "present_value_0"]
    assert all(found[1:] == ends[0][1:] for found in ends)
    for graph in model.graphs:
        assert sum(node.op_type == "DYNAMIC_UPDATE_SLICE" for node in graph) == 6


def test_says_what_transformers_says(merged: Path, shared_directory: Path) -> None:
    """Prompts of one piece, of several, and of some that no piece fits behind."""
    folder = checkpoint(shared_directory, "grouped")
    copy_package_files(merged.parent, folder)
    package = Package.load(merged.parent)
    package.tokenizer = WITHOUT_TOKENIZER
    generator = np.random.default_rng(0)
    lengths = (1, 3, 4, 5, 8, 9, 13, 20, 29, 31, 32)
    prompts = [generator.integers(3, GROUPED["vocab_size"], length).tolist() for length in lengths]
    assert_generates_the_same(package, folder, prompts)
