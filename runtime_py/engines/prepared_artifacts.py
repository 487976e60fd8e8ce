"""Artifacts of models: what an engine prepares once and stores in the disk cache for later loads.

Engines lower graphs and reorder weights. For gigabytes that takes seconds and as much private memory again.
What takes long is done once, into files that each later load maps into memory. No engine checks that such
files belong to the model, so they are stored under a digest of the model's bytes. A file that was digested
before is recognized by its size and times, and not read again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import o2o
from o2o.cli.progress import progress
from o2o.streams.disk_cache import DiskCache
from runtime_py.engines.model_file import ModelFile

MIN_SECONDS = 0.1
"""Seconds of preparation from which its result is stored."""
MIN_BYTES = 8_000_000
"""Bytes of a model from which packing takes longer than `MIN_SECONDS` on any machine. Smaller models are
packed in memory first, to know."""
TICK = 0.2
"""Seconds between two looks at the files that are being written, for the progress bar."""


def find_or_build(
    model: ModelFile,
    cache: DiskCache,
    engine: str,
    *,
    variant: Sequence[object],
    estimate_size: Callable[[], int],
    build: Callable[[Path], None],
    log: Callable[[str], None],
    worth_keeping: Callable[[], bool] = lambda: True,
) -> Path | None:
    """Return the folder with an engine's artifacts of a model, building them if they are missing.

    Args:
        model: The model's file.
        cache: Where artifacts are stored.
        engine: The engine's name, and what it is to be used for. It stores one artifact of each file.
        variant: Further values that the artifacts depend on, besides the model, processor and code.
        estimate_size: Returns about how many bytes they take.
        build: Writes them to an empty folder.
        log: Called with one line when artifacts are built, or when they cannot be stored.
        worth_keeping: Returns whether artifacts that are missing are to be built and stored.

    Returns:
        The folder; None where the artifacts cannot be stored.

    Raises:
        ModelError: The model itself is at fault, as `estimate_size` or `build` finds.
        OSError: The model's file cannot be read.
    """
    key_parts = [engine, processor_features(), code_digest(), *variant]
    alias = cache_key([model.identity, *key_parts])
    known = cache.find_alias(alias)
    key = known or cache_key([model.digest, *key_parts])
    if (entry := cache.get(key)) is not None:
        if not known and model.unchanged:
            cache.add_alias(key, alias)
        return entry
    if not worth_keeping():
        return None
    try:
        size = estimate_size()
        source = cache_key([str(model.path.resolve()), processor_features(), engine])
        with cache.add(key, source, size, f"{engine}: {model.path.resolve()}") as entry:
            log(f"packing the weights once: up to {math.ceil(size / 1e6):,} MB into {cache.folder}")
            with _growing(entry, size):
                build(entry)
            if not model.unchanged:
                raise OSError(f"{model.path} changed while it was packed: try again")
        cache.add_alias(key, alias)
    except OSError as error:
        cause = error.strerror or str(error)
        reason = f"{error.filename}: {cause}" if error.filename else cause
        log(f"packing the weights for this load only: {reason}")
    return cache.get(key)


@contextlib.contextmanager
def _growing(entry: Path, size: int) -> Iterator[None]:
    """Show a progress bar while files of about `size` bytes are written to a folder."""
    ended = threading.Event()
    with progress("pack the weights", size, shown=size >= MIN_BYTES) as advance:

        def watch() -> None:
            seen = 0
            while not ended.wait(TICK):
                with contextlib.suppress(OSError):  # a file was just removed
                    written = sum(file.stat().st_size for file in entry.iterdir())
                    advance(max(0, min(written, size) - seen))
                    seen = max(seen, min(written, size))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()


@functools.cache
def processor_features() -> list[str]:
    """Identify the processor, which packing depends on.

    Returns:
        Its architecture and its features.
    """
    try:
        with open("/proc/cpuinfo") as cpuinfo:
            features = next(line for line in cpuinfo if line.lower().startswith(("flags", "features")))
    except (OSError, StopIteration):
        import platform

        features = platform.processor()
    return [os.uname().machine, features]


@functools.cache
def installed_version(distribution: str) -> str:
    """Return the version of an installed distribution.

    The name of its folder has the version. `importlib.metadata` takes 10 ms to import.

    Args:
        distribution: Its name.

    Returns:
        The version.
    """
    name = re.sub("[-_.]+", "[-_.]+", distribution)
    pattern = re.compile(rf"{name}-([^-]+)\.dist-info", re.IGNORECASE)
    for folder in sys.path:
        with contextlib.suppress(OSError):
            for match in map(pattern.fullmatch, os.listdir(folder or ".")):
                if match is not None:
                    return match[1]
    import importlib.metadata

    return importlib.metadata.version(distribution)


@functools.cache
def code_digest() -> str:
    """Identify the code that lowers models.

    Returns:
        A digest of the names, sizes and times of the source files: to read them takes 20 ms.
    """
    folders = [Path(o2o.__file__).parent, Path(__file__).parent]
    states = []
    for folder in folders:
        for place, _, names in os.walk(folder):
            sources = [os.path.join(place, name) for name in names if name.endswith(".py")]
            states += [(source, (of := os.stat(source)).st_size, of.st_mtime_ns) for source in sources]
    return cache_key(sorted(states))


def cache_key(value: object) -> str:
    """Return a disk cache key for a value.

    Args:
        value: Any object with a `repr` that identifies it.

    Returns:
        32 hexadecimal digits.
    """
    return hashlib.sha256(repr(value).encode()).hexdigest()[:32]
