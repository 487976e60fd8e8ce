"""Preparation of a model for LiteRT: the lowered graph and, for a large model, packed weights, both stored.

XNNPACK packs weights into a file that each later load maps into memory. The lowered graph is stored with it
(`runtime_py.engines.prepared_artifacts`).
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from o2o.cli.silence_stderr import silenced_stderr
from o2o.errors import ModelError
from runtime_py.child_process import run_module
from runtime_py.engines import prepared_artifacts
from runtime_py.engines.litert.compiled_model import compile_model
from runtime_py.engines.litert.lowered_file import PACKED, LoweredFile, LoweringOptions, lower_file
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
        is_proven: Whether LiteRT is known to take all signatures.
    """

    model: ModelFile
    lowered: LoweredFile
    packed: Path | None = None
    is_proven: bool = False

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
    """Lower a model and pack its weights, into the disk cache if that takes long.

    Args:
        model: A Circle or TFLite file.
        options: `buckets`, `all_logits`, `speculate`, `disk_cache` and `log` are used.

    Yields:
        The prepared model.

    Raises:
        ModelError: LiteRT cannot run the model.
        OSError: The file cannot be read. Errors of the disk cache are logged.
    """
    yield _from_cache(model, options) or PreparedModel(model, lower_file(model, _lowering(options)))


def _lowering(options: EngineOptions) -> LoweringOptions:
    verifies = options.speculate and not options.all_logits
    return LoweringOptions(options.buckets, options.all_logits, verifies)


def _from_cache(model: ModelFile, options: EngineOptions) -> PreparedModel | None:
    """Load the prepared model from the disk cache, building it if missing. None if caching is off.

    Without packed weights if packing takes no time, or they cannot be stored.
    """
    if options.disk_cache is None:
        return None
    is_large = model.size >= prepared_artifacts.MIN_BYTES
    # A large model is packed once, with verifiers, for loads with and without drafts.
    lowering = _lowering(replace(options, speculate=options.speculate or is_large))
    purpose = " scoring" if options.all_logits else "" if lowering.verifies else " without drafts"
    seconds = 0.0

    @functools.cache
    def lowered() -> LoweredFile:
        nonlocal seconds
        begin = time.perf_counter()
        file = lower_file(model, lowering)
        seconds = time.perf_counter() - begin
        return file

    @functools.cache
    def seconds_to_pack() -> float | None:
        return math.inf if is_large else _seconds_to_compile(lowered(), model.path)

    def is_slow() -> bool:
        if is_large:
            return True
        lowered()
        to_pack = seconds_to_pack()
        return to_pack is not None and max(seconds, to_pack) >= prepared_artifacts.MIN_SECONDS

    def packs() -> bool:
        return (seconds_to_pack() or 0) >= prepared_artifacts.MIN_SECONDS

    def build(entry: Path) -> None:
        if packs():
            lower_and_pack_in_child(model.path, entry, lowering)
        else:
            lowered().save(entry)

    entry = prepared_artifacts.find_or_build(
        model,
        options.disk_cache,
        f"litert{purpose}",
        variant=[prepared_artifacts.installed_version("ai-edge-litert"), options.buckets],
        estimate_size=lambda: int(packs() * model.size * _MARGIN),
        build=build,
        log=options.log if is_large else lambda line: None,
        worth_keeping=is_slow,
    )
    if entry is not None:
        with contextlib.suppress(OSError):  # another process has just removed it
            packed = entry / PACKED
            return PreparedModel(model, LoweredFile.load(entry), packed if packed.exists() else None, True)
    return PreparedModel(model, lowered())


def _seconds_to_compile(lowered: LoweredFile, file: Path) -> float | None:
    """Compile all signatures, with weights packed in memory. None if LiteRT refuses them, as a load says."""
    begin = time.perf_counter()
    with contextlib.suppress(ModelError), silenced_stderr():
        compile_model(lowered.open(file), None, threads=1).close()
        return time.perf_counter() - begin
    return None


def lower_and_pack_in_child(file: Path, entry: Path, lowering: LoweringOptions) -> None:
    """Run `runtime_py.engines.litert.pack` as child processes: each returns its memory before the next one.

    Args:
        file: The model's file.
        entry: The folder that the lowered model and the packed weights are written to.
        lowering: How to lower it.

    Raises:
        ModelError: LiteRT cannot run the model.
        OSError: A child failed or wrote nothing.
    """
    for arguments in ([json.dumps(asdict(lowering))], []):
        run_module("runtime_py.engines.litert.pack", file, entry, *arguments)
    os.stat(entry / PACKED)
