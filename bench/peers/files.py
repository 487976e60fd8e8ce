"""The random checkpoint of each shape and its conversions, cached in the work folder.

    WORK/15m/checkpoint/                     a random checkpoint, in bfloat16
    WORK/15m/llama_cpp-Q8_0/                 its conversion
    WORK/15m/this_project-int8-tflite-1024/  in one file format, for one capacity

A folder appears when it is complete.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.peers.processes import run_to_end
from bench.peers.variants import Variant

POSITIONS = 2048
"""`max_position_embeddings` of every shape: stories15M has 256, too few for these measurements."""


def checkpoint_of(shape: str, work: Path, log: Path) -> Path:
    """Return the random checkpoint of a shape. Create it if needed.

    Args:
        shape: A shape of `bench/make_checkpoint.py`.
        work: The work folder.
        log: The file for its output.

    Returns:
        The checkpoint's folder.

    Raises:
        PeerFailed: It cannot be created.
    """
    make = [sys.executable, "bench/make_checkpoint.py", "--shape", shape, "--positions", str(POSITIONS)]
    return _create(work / shape / "checkpoint", make, [], log)


def model_of(variant: Variant, python: str, checkpoint: Path, capacity: int, log: Path) -> Path:
    """Return the file or folder that a runner loads. Convert the checkpoint if needed.

    Args:
        variant: The variant.
        python: The interpreter of the peer's environment.
        checkpoint: The checkpoint's folder.
        capacity: S, the number of cache rows.
        log: The file for the converter's output.

    Returns:
        The path of the model.

    Raises:
        PeerFailed: The conversion fails.
    """
    if not variant.peer.converts:
        return checkpoint
    maker = variant.peer.files_of or variant.peer.key
    if variant.peer.files_of:
        python = sys.executable
    convert = [python, "-m", f"bench.peers.converters.{maker}", str(checkpoint)]
    options = [variant.precision, str(capacity), *([variant.form] if variant.form else [])]
    folder = _create(folder_of(variant, checkpoint, capacity), convert, options, log)
    return folder / variant.peer.model.format(form=variant.form)


def folder_of(variant: Variant, checkpoint: Path, capacity: int) -> Path:
    """Return the folder of a conversion. Engines that load the same file share it.

    Args:
        variant: The variant.
        checkpoint: The checkpoint's folder.
        capacity: S, the number of cache rows.

    Returns:
        A folder next to the checkpoint.
    """
    fixed = str(capacity) if variant.peer.fixed else ""
    parts = filter(None, (variant.peer.files_of or variant.peer.key, variant.precision, variant.form, fixed))
    return checkpoint.with_name("-".join(parts))


def remove(shape: str, work: Path, keys: Sequence[str]) -> None:
    """Delete the conversions of a shape.

    Args:
        shape: The shape.
        work: The work folder.
        keys: The keys of the peers.
    """
    for key in keys:
        for folder in (work / shape).glob(f"{key}-*"):
            shutil.rmtree(folder)


def size_of(model: Path) -> int:
    """Return the size of a model on disk.

    Args:
        model: A file, or a folder including its tokenizer.

    Returns:
        Bytes.
    """
    files = [model] if model.is_file() else [file for file in model.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _create(folder: Path, command: Sequence[str], options: Sequence[str], log: Path) -> Path:
    """Fill `folder` with `command FOLDER options...`, unless it exists. It appears when complete."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=folder.parent) as temporary:
        output = Path(temporary) / "made"
        output.mkdir()
        run_to_end([*command, str(output), *options], log, {"TMPDIR": temporary})
        os.replace(output, folder)
    return folder
