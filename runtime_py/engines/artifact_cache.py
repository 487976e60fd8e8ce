"""What is made of a model's file once, and kept in the user's cache for every later load.

Engines want weights in an order of their own. Doing that for gigabytes takes seconds, and as much private
memory again; so for big models it is done once, into files that every later load maps. No engine checks that
these and the model belong together, so they are kept under a digest of the model's bytes. A file that was
seen before is known by its size and times, and not read again.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import o2o
from o2o.errors import ModelError
from runtime_py.engines.disk_cache import Cache

WORTH_KEEPING = 100_000_000
"""Bytes of a model from which it is kept in the cache: packing less takes tenths of a second."""


def keep(
    file: Path,
    cache: Cache,
    engine: str,
    how: Sequence[object],
    size: Callable[[], int],
    make: Callable[[Path], None],
    say: Callable[[str], None],
) -> Path | None:
    """The folder of what `make` puts into an empty one, of the model in `file`; None where it cannot be kept.

    engine: whom it is for; it keeps one of a file. how: what decides about that beside the bytes of `file`,
    the processor and this code. size: about how many bytes it takes. say: is told, in a line, when it is
    made, or why it cannot be kept. Raises OSError of `file` only, and what else `make` raises.
    """
    before = identity(file)
    how = [engine, processor(), code(), *how]
    alias = digest([before, *how])
    known = cache.key_of(alias)
    key = known or digest([content(file), *how])
    if (kept := cache.find(key)) is not None:
        if not known and identity(file) == before:
            cache.also(key, alias)
        return kept
    try:
        wanted = size()
        with cache.add(key, digest([str(file.resolve()), processor(), engine]), wanted) as entry:
            say(f"packing the weights, this once: up to {wanted / 1e9:.1f} GB into {cache.folder}")
            make(entry)
            if identity(file) != before:
                raise OSError(f"{file} was changed in the meantime")
        cache.also(key, alias)
    except OSError as error:
        what = error.strerror or str(error)
        reason = f"{error.filename}: {what}" if error.filename else what
        say(f"packing the weights for this load only: {reason}")
    return cache.find(key)


def run(module: str, *arguments: Path) -> None:
    """Run a module of this package in a process of its own: whose memory is given back, or which an engine
    may end. Raises OSError when that fails, ModelError with what it has printed when that is its exit status.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode == ModelError.exit_code and done.stdout:
        raise ModelError(done.stdout.strip())
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise OSError(f"packing failed: {reason}")


def identity(file: Path) -> list[int]:
    """What changes when the file does: device, inode, size, and the times of the last write and change."""
    stat = file.stat()
    return [stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def content(file: Path) -> str:
    """What changes when its bytes do."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@functools.cache
def processor() -> list[str]:
    """What decides how weights are packed: the processor, and what it can do."""
    try:
        with open("/proc/cpuinfo") as told:
            features = next(line for line in told if line.lower().startswith(("flags", "features")))
    except (OSError, StopIteration):
        features = platform.processor()
    return [platform.machine(), features]


@functools.cache
def code() -> str:
    """What decides how a model is lowered."""
    folders = [Path(o2o.__file__).parent, Path(__file__).parent]
    sources = sorted(source for folder in folders for source in folder.rglob("*.py"))
    return digest(b"".join(source.read_bytes() for source in sources))


def digest(what: object) -> str:
    return hashlib.sha256(repr(what).encode()).hexdigest()[:32]
