"""Tiny random checkpoints with a tokenizer, for the verifying commands."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.checkpoints import GROUPED, write_checkpoint
from tests.compiled import compiled_once, traced_once
from tests.runtime_py.tokenizers_on_disk import LLAMA, write_config, write_llama_json, write_sentencepiece

VOCABULARY = 380  # of the tokenizer


@pytest.fixture(autouse=True, scope="module")
def each_graph_once(shared_directory: Path, pytestconfig: pytest.Config) -> Iterator[None]:
    """The commands trace and compile the same graphs again and again. Quick tests do without, and torch."""
    if pytestconfig.getoption("markexpr") == "not slow":
        yield
        return
    with compiled_once(shared_directory), traced_once():
        yield


@pytest.fixture(scope="session")
def make_checkpoint(shared_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Fields of config.json, of a grouped-query Llama by default -> a checkpoint's folder."""
    pieces = write_config(write_sentencepiece(tmp_path_factory.mktemp("pieces")), **LLAMA)

    def make(**config: Any) -> Path:
        fields = {**GROUPED, "vocab_size": VOCABULARY, **config}
        digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:20]
        folder = shared_directory / f"with-tokenizer-{digest}"
        with FileLock(f"{folder}.lock"):
            if not (folder / "tokenizer.json").exists():
                write_checkpoint(folder, **fields)
                write_llama_json(folder, pieces)
        return folder

    return make


@pytest.fixture(scope="session")
def grouped(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint()
