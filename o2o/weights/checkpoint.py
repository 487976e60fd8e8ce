"""What a checkpoint holds: a folder in the layout of Hugging Face."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from o2o.errors import ModelError
from o2o.weights import pytorch_file, safetensors
from o2o.weights.stored_tensor import StoredTensor

Reader = Callable[[Path], dict[str, StoredTensor]]

# Where the weights may be, the first that is there: an index of shards, or all in one file.
PLACES: tuple[tuple[str, str, Reader], ...] = (
    ("model.safetensors.index.json", "model.safetensors", safetensors.read_header),
    ("pytorch_model.bin.index.json", "pytorch_model.bin", pytorch_file.read_header),
)


@dataclass(frozen=True)
class Checkpoint:
    """A folder with `config.json`, and where each of its tensors lies. No tensor is loaded."""

    directory: Path
    tensors: dict[str, StoredTensor]


def open_checkpoint(directory: str | os.PathLike[str]) -> Checkpoint:
    """Find the tensors of the checkpoint in `directory`: in safetensors, else in what PyTorch saves
    (`pytorch_model.bin`, else the only file called `*.pt` or `*.pth`).

    Raises ModelError, naming the file, when something is missing, cut short or in another format.
    """
    directory = Path(directory)
    if not (directory / "config.json").is_file():
        raise ModelError(f"{directory} has no config.json: not a Hugging Face checkpoint")
    for index, single, read_header in PLACES:
        if (directory / index).is_file():
            return Checkpoint(directory, _sharded(directory / index, read_header))
        if (directory / single).is_file():
            return Checkpoint(directory, read_header(directory / single))
    found = sorted(file for file in directory.iterdir() if file.suffix in (".pt", ".pth") and file.is_file())
    if not found:
        raise ModelError(
            f"{directory} has no weights: neither model.safetensors nor pytorch_model.bin, nor an index of "
            "either's shards, nor a .pt or .pth file"
        )
    if len(found) > 1:
        names = ", ".join(file.name for file in found[:4])
        raise ModelError(f"{directory} has several files that may be its weights ({names}): leave one there")
    return Checkpoint(directory, pytorch_file.read_header(found[0]))


def _sharded(index: Path, read_header: Reader) -> dict[str, StoredTensor]:
    directory = index.parent
    try:
        weight_map = dict(json.loads(index.read_bytes())["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{index} is damaged: no table `weight_map` in it") from error
    shards: dict[str, dict[str, StoredTensor]] = {}
    for file in sorted({str(file) for file in weight_map.values()}):
        if Path(file).name != file:
            raise ModelError(f"{index} names a shard outside its folder: {file}")
        if not (directory / file).is_file():
            raise ModelError(f"{directory} lacks the shard {file} that its index names")
        shards[file] = read_header(directory / file)
    for name, file in weight_map.items():
        if name not in shards[file]:
            raise ModelError(f"{directory / file} lacks {name}, which the index says it holds")
    return {name: shards[file][name] for name, file in weight_map.items()}
