"""What an export needs, told before it starts, and whether that is there."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from o2o.errors import O2oError
from o2o.weights.stored_tensor import StoredTensor

# Of one process that exports one graph after the other: `bench/export.py` measures them.
MEMORY = 450_000_000  # bytes for Python with torch, transformers and TICO
MEMORY_A_LAYER = 3_500_000
DISK_A_LAYER = 20_000  # bytes of a graph without weights
ITEM_SIZE = {"float32": 4, "float16": 2}  # bytes of a number in a model


@dataclass(frozen=True)
class Needs:
    """parameters: how many; stored: their bytes in the checkpoint; bound: in a model; graphs: bytes of all
    graphs as they are exported; memory: bytes of one process."""

    parameters: int
    stored: int
    bound: int
    graphs: int
    memory: int


def needs(tensors: Mapping[str, StoredTensor], layers: int, graphs: int, dtype: str, embed: bool) -> Needs:
    """What it takes to export `graphs` graphs of a model with these tensors. Estimates, but for the numbers
    of parameters and of bytes in the checkpoint."""
    places = {(tensor.path, tensor.offset): tensor for tensor in tensors.values()}.values()
    parameters = sum(math.prod(tensor.shape) for tensor in places)
    bound = parameters * ITEM_SIZE[dtype]
    graph = layers * DISK_A_LAYER
    return Needs(
        parameters,
        sum(tensor.length for tensor in places),
        bound + graph * graphs,
        graphs * (graph + (bound if embed else 0)),
        MEMORY + layers * MEMORY_A_LAYER,
    )


def check_disk(folder: str | os.PathLike[str], needed: int, what: str) -> None:
    """Raises O2oError, with the numbers, when the disk of `folder` has no room for `needed` bytes."""
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        raise O2oError(
            f"{what} takes {gigabytes(needed)} on disk, {folder} has {gigabytes(free)} free: make room, or "
            "write elsewhere"
        )


def processes(memory: int, wanted: int) -> int:
    """How many of `wanted` processes of `memory` bytes fit at a time. Raises O2oError when not one does."""
    free = available_memory()
    if memory > free:
        raise O2oError(
            f"exporting takes about {gigabytes(memory)} of memory, and {gigabytes(free)} are free: end "
            "other programs first"
        )
    return min(wanted, free // memory)


def available_memory() -> int:
    """Bytes that this process may still take: of the machine's, and of its control group's if it has a
    limit (cgroup v2, as in containers)."""
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return min(free, int(limit) - int(used))
    except (OSError, ValueError):  # no such group, or "max"
        return free


def gigabytes(size: int) -> str:
    """`4.40 GB`, `1.5 MB`."""
    return f"{size / 1e9:.2f} GB" if size >= 5e7 else f"{size / 1e6:.1f} MB"
