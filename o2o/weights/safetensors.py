"""Reader of the headers of safetensors files: where each tensor's bytes are.

A file is 8 bytes, the length N of the header (little endian); N bytes of JSON,
`{name: {"dtype", "shape", "data_offsets": [begin, end]}}`, with offsets from the end of the header; then the
data. The library `safetensors` returns tensors but not their offsets, which streaming needs.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from o2o.errors import ModelError
from o2o.weights.stored_tensor import ITEM_SIZE, StoredTensor

MAX_HEADER = 100 << 20  # bytes; the limit of the safetensors library


def read_header(path: str | os.PathLike[str]) -> dict[str, StoredTensor]:
    """Read the header of a safetensors file.

    Args:
        path: The file.

    Returns:
        The tensors by name, in the order of the header.

    Raises:
        ModelError: The file is truncated, has another format, or its header contradicts itself.
        OSError: The file cannot be read.
    """
    path = Path(path).absolute()  # not resolved: in the hub's cache only the links have readable names
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(8)
        if head == b"version ":
            raise ModelError(f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` there")
        length = int.from_bytes(head, "little")
        if len(head) < 8 or 8 + length > size:
            raise ModelError(
                f"{path} is truncated, or not a safetensors file: {size} bytes, fewer than its header has"
            )
        if length > MAX_HEADER:
            raise ModelError(f"{path} is not a safetensors file: its header would have {length} bytes")
        text = file.read(length)
    try:
        header = json.loads(text)
        if not isinstance(header, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise ModelError(f"{path} is not a safetensors file: its header is not JSON ({error})") from error
    header.pop("__metadata__", None)
    start = 8 + length
    return {name: _stored_tensor(path, name, entry, start, size) for name, entry in header.items()}


def _stored_tensor(path: Path, name: str, entry: Any, start: int, size: int) -> StoredTensor:
    try:
        dtype, shape = entry["dtype"], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        whole = all(isinstance(n, int) and n >= 0 for n in (*shape, begin, end))
    except (TypeError, KeyError, ValueError) as error:
        raise ModelError(f"{path}: the header's entry for {name} is damaged") from error
    if dtype not in ITEM_SIZE:
        raise ModelError(f"{path}: {name} has an unknown dtype {dtype!r}")
    if not whole or end - begin != math.prod(shape) * ITEM_SIZE[dtype]:
        raise ModelError(
            f"{path}: {name} has shape {list(shape)} and dtype {dtype}, but bytes {begin} to {end}"
        )
    if start + end > size:
        raise ModelError(
            f"{path} is truncated: it ends at byte {size}, {name} at byte {start + end}: download it again"
        )
    return StoredTensor(name, path, dtype, shape, start + begin, end - begin)
