"""A package's model made ready for LiteRT: lowered, and the weights of a big one packed, once and for all.

XNNPACK wants weights in an order of its own. Doing that for gigabytes takes seconds, and as much private
memory again; so for big models it is done once, into a file that every later load maps, and the lowered
graph is kept along with it. LiteRT does not check that weights and file belong together, so they are kept
under a digest of the model's bytes. A file that was seen before is known by its size and times, and not read
again.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import o2o
from o2o.errors import ModelError
from runtime_py.cache import Cache
from runtime_py.lowered import Lowered, lower_file
from runtime_py.mapping import FileBehind

WORTH_KEEPING = 100_000_000
"""Bytes of a model from which it is kept in the cache: packing less takes tenths of a second."""
_PACKED = "packed"
_MARGIN = 1.1  # packing pads rows; the lowered graph is some megabytes


@dataclass(frozen=True)
class Prepared:
    """The model in `file`. packed: the file with its packed weights, None when they are not kept."""

    file: Path
    identity: list[int]
    lowered: Lowered
    packed: Path | None = None

    def open(self) -> FileBehind | Path:
        """What LiteRT loads. Raises ModelError when the file is another by now, OSError."""
        opened = self.lowered.over(self.file)
        if _identity(self.file) != self.identity:
            raise ModelError(f"{self.file} was changed while it was loaded: try again")
        return opened


def prepare(
    file: Path, cache: Cache | None, say: Callable[[str], None], capacities: Sequence[int] | None = None
) -> Prepared:
    """The model in `file`, out of `cache` when it is big.

    say: is told, in a line, what takes long or cannot be kept. capacities: see `o2o.lower.tuning.tune`.
    Raises ModelError, OSError, of `file` only.
    """
    identity = _identity(file)
    if cache is None or identity[2] < WORTH_KEEPING:
        return Prepared(file, identity, lower_file(file, capacities))
    how = [_processor(), importlib.metadata.version("ai-edge-litert"), _code(), capacities]
    alias = _digest([identity, *how])
    known = cache.key_of(alias)
    key = known or _digest([_content(file), *how])
    if (kept := _find(cache, key)) is not None:
        if not known and _identity(file) == identity:
            cache.also(key, alias)
        return Prepared(file, identity, *kept)
    lowered = lower_file(file, capacities)
    size = identity[2] + lowered.widened
    try:
        with cache.add(key, _digest([str(file.resolve()), _processor()]), int(size * _MARGIN)) as entry:
            say(f"packing the weights, this once: {size / 1e9:.1f} GB into {cache.folder}")
            lowered.save(entry)
            _pack(entry, file)
            if _identity(file) != identity:
                raise OSError(f"{file} was changed in the meantime")
        cache.also(key, alias)
    except OSError as error:
        what = error.strerror or str(error)
        reason = f"{error.filename}: {what}" if error.filename else what
        say(f"packing the weights for this load only: {reason}")
    return Prepared(file, identity, *(_find(cache, key) or (lowered, None)))


def _find(cache: Cache, key: str) -> tuple[Lowered, Path] | None:
    if (entry := cache.find(key)) is None:
        return None
    try:
        return Lowered.load(entry), entry / _PACKED
    except OSError:  # another process has just removed it
        return None


def _identity(file: Path) -> list[int]:
    """What changes when the file does: device, inode, size, and the times of the last write and change."""
    stat = file.stat()
    return [stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _content(file: Path) -> str:
    """What changes when its bytes do."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@functools.cache
def _processor() -> list[str]:
    """What decides how weights are packed: the processor, and what it can do."""
    try:
        with open("/proc/cpuinfo") as told:
            features = next(line for line in told if line.lower().startswith(("flags", "features")))
    except (OSError, StopIteration):
        features = platform.processor()
    return [platform.machine(), features]


@functools.cache
def _code() -> str:
    """What decides how a model is lowered."""
    folders = [Path(o2o.__file__).parent, Path(__file__).parent]
    sources = sorted(source for folder in folders for source in folder.rglob("*.py"))
    return _digest(b"".join(source.read_bytes() for source in sources))


def _digest(what: object) -> str:
    return hashlib.sha256(repr(what).encode()).hexdigest()[:32]


def _pack(entry: Path, file: Path) -> None:
    """Fill `entry` in a process of its own: LiteRT ends it when the disk becomes full. Raises OSError."""
    command = [sys.executable, "-m", __spec__.name, str(entry), str(file)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise OSError(f"packing failed: {reason}")
    os.stat(entry / _PACKED)


def _main(entry: Path, file: Path) -> None:
    from runtime_py.engines.litert import pack

    try:
        pack(Lowered.load(entry).over(file), entry / _PACKED)
    except ModelError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    _main(*map(Path, sys.argv[1:]))
