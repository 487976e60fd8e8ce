"""Checkpoints: folders in the layout of Hugging Face."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from o2o.errors import ModelError
from o2o.weights import derived_checkpoint, pytorch_file, safetensors
from o2o.weights.gguf_file import is_gguf, read_gguf
from o2o.weights.weight_source import WeightSource

Reader = Callable[[Path], Mapping[str, WeightSource]]

# The files that may hold the weights, in the order of preference: an index of shards, or a single file.
WEIGHT_FILES: tuple[tuple[str, str, Reader], ...] = (
    (derived_checkpoint.FILE, derived_checkpoint.FILE, derived_checkpoint.read_index),
    ("model.safetensors.index.json", "model.safetensors", safetensors.read_header),
    ("pytorch_model.bin.index.json", "pytorch_model.bin", pytorch_file.read_header),
)

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin", "adapter_config.json")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose tensors are not loaded.

    Attributes:
        directory: A folder with `config.json`.
        tensors: Its tensors by name.
    """

    directory: Path
    tensors: Mapping[str, WeightSource]


def adapter_file(directory: Path) -> str | None:
    """Find an adapter (LoRA) in a checkpoint's folder. Reading the checkpoint passes over it.

    Args:
        directory: The folder.

    Returns:
        The name of its first file; None if there is none.
    """
    return next((name for name in ADAPTER_FILES if (directory / name).exists()), None)


def open_checkpoint(directory: str | os.PathLike[str]) -> Checkpoint:
    """Find the tensors of a checkpoint.

    They are in safetensors files, else in `pytorch_model.bin`, else in the only file `*.pt` or `*.pth`.

    Args:
        directory: A folder with `config.json`.

    Returns:
        The checkpoint. Only headers were read.

    Raises:
        ModelError: A file is missing, truncated or has another format; the message names it.
        OSError: A file cannot be read.
    """
    directory = Path(directory)
    if not (directory / "config.json").is_file():
        reason = _adapter_alone(directory) if adapter_file(directory) else "not a Hugging Face checkpoint"
        raise ModelError(f"{directory} has no config.json: {reason}")
    return Checkpoint(directory, open_weights(directory))


def open_weights(place: Path) -> Mapping[str, WeightSource]:
    """Find the tensors of a folder, or of one file.

    Args:
        place: A folder, with or without `config.json`, or a file of safetensors, of `torch.save`, or GGUF.

    Returns:
        The tensors by name. Only headers were read.

    Raises:
        ModelError: A file is missing, truncated or has another format; the message names it.
        OSError: A file cannot be read.
    """
    if place.is_file() and is_gguf(place):
        return read_gguf(place).tensors
    if place.is_file():
        reader = safetensors.read_header if place.suffix == ".safetensors" else pytorch_file.read_header
        return reader(place)
    directory = place
    for index, single, read_header in WEIGHT_FILES:
        if index != single and (directory / index).is_file():
            return _sharded(directory / index, read_header)
        if (directory / single).is_file():
            return read_header(directory / single)
    files = sorted(file for file in directory.iterdir() if file.suffix in (".pt", ".pth") and file.is_file())
    if not files and adapter_file(directory):
        raise ModelError(f"{directory} has no weights of a model: {_adapter_alone(directory)}")
    if not files:
        raise ModelError(f"{directory} has no weights: it needs .safetensors, .bin, .pt or .pth files")
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:4])
        raise ModelError(f"{directory} has several files of weights ({names}): remove all but one")
    return pytorch_file.read_header(files[0])


def _adapter_alone(directory: Path) -> str:
    return (
        f"it holds an adapter (LoRA) alone, {adapter_file(directory)}: give the base model, and this folder "
        "as --adapter"
    )


def _sharded(index: Path, read_header: Reader) -> dict[str, WeightSource]:
    directory = index.parent
    try:
        weight_map = dict(json.loads(index.read_bytes())["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{index} is damaged: it has no object `weight_map`") from error
    shards: dict[str, Mapping[str, WeightSource]] = {}
    for file in sorted({str(file) for file in weight_map.values()}):
        if Path(file).name != file:
            raise ModelError(f"{index} names a shard outside its folder: {file}")
        if not (directory / file).is_file():
            raise ModelError(f"{directory} lacks the shard {file} that its index names")
        shards[file] = read_header(directory / file)
    for name, file in weight_map.items():
        if name not in shards[file]:
            raise ModelError(f"{directory / file} lacks {name}, which the index lists there")
    return {name: shards[file][name] for name, file in weight_map.items()}
