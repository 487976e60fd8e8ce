"""Estimates of the disk space and memory that an export needs, and checks that they are available."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from export.options import ITEM_SIZE, WeightsType
from o2o.errors import O2oError
from o2o.weights.weight_source import WeightSource

# Memory of one process that exports one graph after the other; measured by `bench/export.py`.
MEMORY = 450_000_000  # bytes for Python with torch, transformers and TICO
MEMORY_PER_LAYER = 3_500_000
DISK_PER_LAYER = 20_000  # bytes of a graph without weights

BYTES = {"none": 4.0, "float16": 2.0}
"""{quantization recipe: bytes of a parameter}. Other recipes take slightly more than 1."""


@dataclass(frozen=True)
class Needs:
    """What an export needs.

    Attributes:
        parameters: Number of parameters.
        stored: Bytes of the parameters in the checkpoint.
        bound: Bytes of one model with all graphs and the weights.
        graphs: Bytes of all graphs as export writes them.
        memory: Bytes of memory of one process.
    """

    parameters: int
    stored: int
    bound: int
    graphs: int
    memory: int


def estimate_needs(
    tensors: Mapping[str, WeightSource], layers: int, graphs: int, dtype: WeightsType, embed: bool
) -> Needs:
    """Estimate what an export needs. `parameters` and `stored` are exact.

    Args:
        tensors: The checkpoint's tensors.
        layers: Number of transformer layers.
        graphs: Number of graphs.
        dtype: The dtype of stored matrices.
        embed: Whether each graph holds the weights.

    Returns:
        The estimate.
    """
    places = {tensor.key: tensor for tensor in tensors.values()}.values()
    parameters = sum(math.prod(tensor.shape) for tensor in places)
    bound = parameters * ITEM_SIZE[dtype]
    graph = layers * DISK_PER_LAYER
    return Needs(
        parameters,
        sum(tensor.length for tensor in places),
        bound + graph * graphs,
        graphs * (graph + (bound if embed else 0)),
        MEMORY + layers * MEMORY_PER_LAYER,
    )


def quantized_bytes(parameters: int, recipe: str) -> int:
    """Estimate the size of a quantized model.

    Args:
        parameters: Number of parameters of the model.
        recipe: A recipe of `o2o.quantization.recipes`.

    Returns:
        Bytes.
    """
    return int(parameters * BYTES.get(recipe, 1.1))


def check_disk(folder: str | os.PathLike[str], needed: int, what: str) -> None:
    """Check that a disk has room.

    Args:
        folder: A folder on that disk; it need not exist yet.
        needed: Bytes.
        what: What needs them, for the message.

    Raises:
        O2oError: There is less room.
    """
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        raise O2oError(
            f"{what} needs {format_bytes(needed)} on disk, {folder} has {format_bytes(free)} free: "
            "make room, or write elsewhere"
        )


def processes_that_fit(memory: int, wanted: int) -> int:
    """Return how many processes fit into memory at a time.

    Args:
        memory: Bytes of one process.
        wanted: The most to start.

    Returns:
        A number from 1 to `wanted`.

    Raises:
        O2oError: Not even one fits.
    """
    free = available_memory()
    if memory > free:
        raise O2oError(
            f"exporting takes about {format_bytes(memory)} of memory, and {format_bytes(free)} are free: end "
            "other programs first"
        )
    return min(wanted, free // memory)


def available_memory() -> int:
    """Return how much memory this process may still allocate.

    Returns:
        Free bytes of the machine, or of this process's control group (cgroup v2) if it has a lower limit.
    """
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return min(free, int(limit) - int(used))
    except (OSError, ValueError):  # no such group, or "max"
        return free


def format_bytes(size: int) -> str:
    """Format a size.

    Args:
        size: Bytes.

    Returns:
        Text such as `4.40 GB` or `1.5 MB`.
    """
    return f"{size / 1e9:.2f} GB" if size >= 5e7 else f"{size / 1e6:.1f} MB"
