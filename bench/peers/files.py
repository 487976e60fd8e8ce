"""The checkpoint of a shape and what each peer makes of it, under the work folder, kept from run to run.

    WORK/15m/checkpoint/                     a random checkpoint, in bfloat16
    WORK/15m/llama_cpp-Q8_0/                 made of it
    WORK/15m/this_project-int8-tflite-1024/  in a form, for a capacity

They appear when they are complete.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.peers.processes import finish
from bench.peers.variants import Variant

POSITIONS = 2048
"""Of every shape: stories15M's own 256 are too few for what is measured."""


def checkpoint_of(shape: str, work: Path, log: Path) -> Path:
    """Raises PeerFailed, though no peer has a part in it."""
    make = [sys.executable, "bench/make_checkpoint.py", "--shape", shape, "--positions", str(POSITIONS)]
    return _made(work / shape / "checkpoint", make, [], log)


def model_of(variant: Variant, python: str, checkpoint: Path, capacity: int, log: Path) -> Path:
    """What the runner of `variant` loads, converted unless it is there. Raises PeerFailed."""
    if not variant.peer.converts:
        return checkpoint
    convert = [python, "-m", f"bench.peers.converters.{variant.peer.key}", str(checkpoint)]
    rest = [variant.precision, str(capacity), *([variant.form] if variant.form else [])]
    folder = _made(folder_of(variant, checkpoint, capacity), convert, rest, log)
    return folder / variant.peer.model.format(form=variant.form)


def folder_of(variant: Variant, checkpoint: Path, capacity: int) -> Path:
    """Engines that take the same file share it."""
    fixed = str(capacity) if variant.peer.fixed else ""
    parts = filter(None, (variant.peer.key, variant.precision, variant.form, fixed))
    return checkpoint.with_name("-".join(parts))


def remove(shape: str, work: Path, keys: Sequence[str]) -> None:
    """What was made of the checkpoint of `shape` for the peers of these keys."""
    for key in keys:
        for folder in (work / shape).glob(f"{key}-*"):
            shutil.rmtree(folder)


def size_of(model: Path) -> int:
    """Bytes of the weights on disk: of a file, or of a folder, tokenizer and all."""
    files = [model] if model.is_file() else [file for file in model.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _made(folder: Path, command: Sequence[str], rest: Sequence[str], log: Path) -> Path:
    """`folder`, filled by `command FOLDER rest...` unless it is there. It appears when that has succeeded."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=folder.parent) as part:
        made = Path(part) / "made"
        made.mkdir()
        finish([*command, str(made), *rest], log, {"TMPDIR": part})
        os.replace(made, folder)
    return folder
