"""The flag `--checkpoint_path` of the commands here, and the checkpoint that it names."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from export.loading_flags import add_adapter_flag
from o2o.errors import ModelError

if TYPE_CHECKING:
    from o2o.weights.checkpoint import Checkpoint

DEMO = Path(__file__).resolve().parent / "demo" / "checkpoint"
FORMATS = (".safetensors", ".bin", ".pt", ".pth")


def add_checkpoint_path(parser: argparse.ArgumentParser) -> None:
    """Add the flag `--checkpoint_path`.

    Args:
        parser: The command's parser.
    """
    parser.add_argument(
        "--checkpoint_path",
        metavar="PATH",
        default=str(DEMO),
        help="a checkpoint's folder, its weights file, a GGUF file, or an id on the Hugging Face hub (the "
        "demo model)",
    )
    add_adapter_flag(parser)


def checkpoint_at(path: str, adapter: str | None = None) -> Checkpoint:
    """Open the checkpoint that a flag names.

    Args:
        path: A folder, a file of weights, a GGUF file, or an id on the hub.
        adapter: The folder of an adapter (LoRA) to merge; None for none.

    Returns:
        The checkpoint.

    Raises:
        UsageError: There is no such folder.
        ModelError: It is not a checkpoint.
    """
    from export.hub import resolve
    from o2o.weights.checkpoint import open_checkpoint
    from o2o.weights.gguf_file import is_gguf

    file = Path(path).expanduser()
    if not file.is_file() or is_gguf(file):
        return open_checkpoint(resolve(path, adapter=adapter).absolute())
    if file.suffix not in FORMATS:
        raise ModelError(f"{file}: file format not supported: use .safetensors, .bin, .pt or .pth")
    checkpoint = open_checkpoint(file.absolute().parent)
    used = {tensor.path.resolve() for tensor in checkpoint.tensors.values()}
    if file.resolve() not in used:
        raise ModelError(
            f"{file.parent} also holds {min(used).name}, which takes precedence: give the folder, or move "
            f"{file.name} into a folder with config.json and no other weights"
        )
    return (
        checkpoint if adapter is None else open_checkpoint(resolve(file.absolute().parent, adapter=adapter))
    )
