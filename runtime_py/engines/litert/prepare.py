"""Preparation of a model for LiteRT: the lowered graph and, for a large model, packed weights, both stored.

XNNPACK packs weights into a file that each later load maps into memory. The lowered graph is stored with it
(`runtime_py.engines.prepared_artifacts`).
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from o2o.errors import ModelError
from runtime_py.child_process import run_module
from runtime_py.engines import prepared_artifacts
from runtime_py.engines.litert.lowered_file import PACKED, LoweredFile, lower_file
from runtime_py.engines.litert.mapped_bytes import MappedBytes
from runtime_py.engines.model_file import ModelFile
from runtime_py.engines.options import EngineOptions

_MARGIN = 1.1  # packing pads rows; the lowered graph takes some megabytes


@dataclass(frozen=True)
class PreparedModel:
    """What LiteRT loads.

    Attributes:
        model: The file that was prepared.
        lowered: Its TFLite graph.
        packed: The file with its packed weights; None to pack them in memory.
    """

    model: ModelFile
    lowered: LoweredFile
    packed: Path | None = None

    def open(self) -> MappedBytes | Path:
        """Open the model.

        Returns:
            The TFLite model as LiteRT takes it.

        Raises:
            ModelError: The file has changed since it was read.
            OSError: The file cannot be read.
        """
        opened = self.lowered.open(self.model.path)
        if not self.model.unchanged:
            raise ModelError(f"{self.model.path} was changed while it was loaded: try again")
        return opened


@contextlib.contextmanager
def prepare(model: ModelFile, options: EngineOptions) -> Iterator[PreparedModel]:
    """Lower a model, into the disk cache if that takes long, and with packed weights if it is large.

    Args:
        model: A Circle or TFLite file.
        options: `buckets`, `all_logits`, `speculate`, `disk_cache` and `log` are used.

    Yields:
        The prepared model.

    Raises:
        ModelError: LiteRT cannot run the model.
        OSError: The file cannot be read. Errors of the disk cache are logged.
    """
    yield _from_cache(model, options) or PreparedModel(model, _lower(model, options))


def _lower(model: ModelFile, options: EngineOptions) -> LoweredFile:
    verifies = options.speculate and not options.all_logits
    return lower_file(model, options.buckets, options.all_logits, verifies)


def _from_cache(model: ModelFile, options: EngineOptions) -> PreparedModel | None:
    """Load the prepared model from the disk cache, building it if missing. None if caching is off.

    Without packed weights if the model is small, or they cannot be stored.
    """
    if options.disk_cache is None:
        return None
    packs = model.size >= prepared_artifacts.MIN_BYTES
    complete = replace(options, speculate=True)  # the same entry with and without it
    seconds = 0.0

    @functools.cache
    def lowered() -> LoweredFile:
        nonlocal seconds
        begin = time.perf_counter()
        file = _lower(model, complete)
        seconds = time.perf_counter() - begin
        return file

    def is_slow() -> bool:
        lowered()
        return packs or seconds >= prepared_artifacts.MIN_SECONDS

    def build(entry: Path) -> None:
        lowered().save(entry)
        if packs:
            pack_in_child(model.path, entry)

    entry = prepared_artifacts.find_or_build(
        model,
        options.disk_cache,
        "litert scoring" if options.all_logits else "litert",
        variant=[importlib.metadata.version("ai-edge-litert"), options.buckets],
        estimate_size=lambda: int((packs * model.size + lowered().growth) * _MARGIN),
        build=build,
        log=options.log if packs else lambda line: None,
        worth_keeping=is_slow,
    )
    if entry is not None:
        with contextlib.suppress(OSError):  # another process has just removed it
            return PreparedModel(model, LoweredFile.load(entry), entry / PACKED if packs else None)
    return PreparedModel(model, lowered())


def pack_in_child(file: Path, entry: Path) -> None:
    """Run `runtime_py.engines.litert.pack` as a child process.

    Args:
        file: The model's file.
        entry: The folder with the lowered model; the packed weights are written there.

    Raises:
        OSError: The child failed or wrote nothing.
    """
    run_module("runtime_py.engines.litert.pack", file, entry)
    os.stat(entry / PACKED)
