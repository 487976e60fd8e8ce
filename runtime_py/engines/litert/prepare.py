"""A package's model made ready for LiteRT: lowered, and the weights of a big one packed, once and for all.

XNNPACK packs weights into a file that every later load maps; the lowered graph is kept along with it
(`runtime_py.engines.artifact_cache`).
"""

from __future__ import annotations

if __name__ == "__main__":
    from o2o.cli.interrupt import exit_on_interrupt

    exit_on_interrupt(None)

import contextlib
import functools
import importlib.metadata
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from o2o.errors import ModelError
from runtime_py.engines import artifact_cache
from runtime_py.engines.disk_cache import Cache
from runtime_py.engines.litert.lowered_file import Lowered, lower_file
from runtime_py.engines.litert.mapped_bytes import FileBehind

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
        if artifact_cache.identity(self.file) != self.identity:
            raise ModelError(f"{self.file} was changed while it was loaded: try again")
        return opened


def prepare(
    file: Path, cache: Cache | None, say: Callable[[str], None], capacities: Sequence[int] | None = None
) -> Prepared:
    """The model in `file`, out of `cache` when it is big.

    say: is told, in a line, what takes long or cannot be kept. capacities: see
    `o2o.lower.litert.tuning.tune`.
    Raises ModelError, OSError, of `file` only.
    """
    identity = artifact_cache.identity(file)
    lowered = functools.cache(lambda: lower_file(file, capacities))
    if cache is None or identity[2] < artifact_cache.WORTH_KEEPING:
        return Prepared(file, identity, lowered())

    def size() -> int:
        return int((identity[2] + lowered().widened) * _MARGIN)

    def make(entry: Path) -> None:
        lowered().save(entry)
        _pack(entry, file)

    how = [importlib.metadata.version("ai-edge-litert"), capacities]
    entry = artifact_cache.keep(file, cache, "litert", how, size, make, say)
    if entry is not None:
        with contextlib.suppress(OSError):  # another process has just removed it
            return Prepared(file, identity, Lowered.load(entry), entry / _PACKED)
    return Prepared(file, identity, lowered())


def _pack(entry: Path, file: Path) -> None:
    """Fill `entry` in a process of its own: LiteRT ends it when the disk becomes full. Raises OSError."""
    artifact_cache.run(__spec__.name, entry, file)
    os.stat(entry / _PACKED)


def _main(entry: Path, file: Path) -> None:
    from runtime_py.engines.litert.engine import pack

    try:
        pack(Lowered.load(entry).over(file), entry / _PACKED)
    except ModelError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    _main(*map(Path, sys.argv[1:]))
