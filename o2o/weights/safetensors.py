"""Where each tensor's bytes lie in a safetensors file.

A file is: 8 bytes, the header's length N (little endian); N bytes of JSON, `{name: {"dtype", "shape",
"data_offsets": [begin, end]}}`, offsets counted from the end of the header; then the data. The library of
that name hands out tensors but not their places, and the places are what streaming needs.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from o2o.errors import ModelError
from o2o.weights.stored_tensor import ITEM_SIZE, StoredTensor

MAX_HEADER = 100 << 20  # bytes; the limit of the format's own library


def read_header(path: str | os.PathLike[str]) -> dict[str, StoredTensor]:
    """The tensors of the safetensors file at `path`, in the header's order; no data is read.

    Raises ModelError for a file that is cut short, is no safetensors file, or whose header contradicts
    itself; OSError for one that cannot be read.
    """
    path = Path(path).absolute()  # not resolved: in the hub's cache, links have telling names
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(8)
        if head == b"version ":
            raise ModelError(f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` there")
        length = int.from_bytes(head, "little")
        if len(head) < 8 or 8 + length > size:
            raise ModelError(
                f"{path} is cut short, or no safetensors file: {size} bytes, less than its header"
            )
        if length > MAX_HEADER:
            raise ModelError(f"{path} is no safetensors file: a header of {length} bytes")
        text = file.read(length)
    try:
        header = json.loads(text)
        if not isinstance(header, dict):
            raise ValueError("not a table")
    except ValueError as error:
        raise ModelError(f"{path} is no safetensors file: its header is not JSON ({error})") from error
    header.pop("__metadata__", None)
    start = 8 + length
    return {name: _entry(path, name, told, start, size) for name, told in header.items()}


def _entry(path: Path, name: str, told: Any, start: int, size: int) -> StoredTensor:
    try:
        dtype, shape = told["dtype"], tuple(told["shape"])
        begin, end = told["data_offsets"]
        whole = all(isinstance(n, int) and n >= 0 for n in (*shape, begin, end))
    except (TypeError, KeyError, ValueError) as error:
        raise ModelError(f"{path}: the header's entry for {name} is damaged") from error
    if dtype not in ITEM_SIZE:
        raise ModelError(f"{path}: {name} has an unknown dtype {dtype!r}")
    if not whole or end - begin != math.prod(shape) * ITEM_SIZE[dtype]:
        raise ModelError(f"{path}: {name} says shape {list(shape)} of {dtype} but bytes {begin} to {end}")
    if start + end > size:
        raise ModelError(
            f"{path} is cut short: it ends at byte {size}, {name} reaches to byte {start + end}: "
            "download it again"
        )
    return StoredTensor(name, path, dtype, shape, start + begin, end - begin)
