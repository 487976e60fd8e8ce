"""Where the commands find their checkpoint: the flag, and what it may name."""

from __future__ import annotations

import argparse
from pathlib import Path

from export.hub import resolve
from o2o.errors import ModelError
from o2o.weights.checkpoint import Checkpoint, open_checkpoint

DEMO = Path(__file__).resolve().parent / "demo" / "checkpoint"
FORMATS = (".safetensors", ".bin", ".pt", ".pth")


def add_checkpoint_path(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint_path",
        metavar="PATH",
        default=str(DEMO),
        help="a checkpoint's folder, its weights file, or its id on the Hugging Face hub (the demo model)",
    )


def checkpoint_at(path: str) -> Checkpoint:
    """The checkpoint in the folder `path`, or whose weights are the file `path`.

    Raises UsageError for a path where nothing is, ModelError for what is no checkpoint.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        directory = resolve(path).absolute()
        found = sorted(other.name for other in directory.iterdir() if other.suffix in FORMATS)
        if not found:
            raise ModelError(f"{directory} has no weights: use .safetensors, .bin or .pt")
        return open_checkpoint(directory)
    if file.suffix not in FORMATS:
        raise ModelError(f"{file}: file format not supported: use .safetensors, .bin or .pt")
    checkpoint = open_checkpoint(file.absolute().parent)
    used = {tensor.path.resolve() for tensor in checkpoint.tensors.values()}
    if file.resolve() not in used:
        raise ModelError(
            f"{file.parent} holds {min(used).name} too, which is what is taken: give its folder, or put "
            f"{file.name} into one with config.json alone"
        )
    return checkpoint
