"""What a checkpoint holds: a folder in the layout of Hugging Face."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from o2o.errors import ModelError
from o2o.weights.safetensors import read_header
from o2o.weights.stored import StoredTensor

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Checkpoint:
    """A folder with `config.json`, and where each of its tensors lies. No tensor is loaded."""

    directory: Path
    tensors: dict[str, StoredTensor]


def open_checkpoint(directory: str | os.PathLike[str]) -> Checkpoint:
    """Find the tensors of the checkpoint in `directory`: one safetensors file, or shards and their index.

    Raises ModelError, naming the file, when something is missing, cut short or in another format.
    """
    directory = Path(directory)
    if not (directory / "config.json").is_file():
        raise ModelError(f"{directory} has no config.json: not a Hugging Face checkpoint")
    if (directory / INDEX).is_file():
        return Checkpoint(directory, _sharded(directory))
    if (directory / SINGLE).is_file():
        return Checkpoint(directory, read_header(directory / SINGLE))
    if any(directory.glob("*.bin")) or any(directory.glob("*.pth")):
        raise ModelError(
            f"{directory} has its weights as pickles (.bin) only: convert them with transformers, "
            "`AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)`"
        )
    raise ModelError(f"{directory} has no weights: neither {SINGLE} nor {INDEX}")


def _sharded(directory: Path) -> dict[str, StoredTensor]:
    index = directory / INDEX
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
