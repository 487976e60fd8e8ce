"""Where a checkpoint is and what it holds: a folder in the layout of Hugging Face."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from export.safetensors import StoredTensor, read_header
from o2o.errors import ModelError, UsageError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

# What is fetched from the hub: never other formats of the same weights.
WANTED = [
    *("config.json", "generation_config.json", "*.safetensors", INDEX),
    *("tokenizer*", "special_tokens_map.json", "vocab.json", "merges.txt", "*.tiktoken", "chat_template*"),
]
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class Checkpoint:
    """A folder with `config.json`, and where each of its tensors lies. No tensor is loaded."""

    directory: Path
    tensors: dict[str, StoredTensor]


def resolve(model: str | os.PathLike[str]) -> Path:
    """The folder of `model`: itself when there is such a folder, else a hub id, fetched (or found in the
    hub's local cache). An existing folder wins over a hub id of the same name.

    Raises UsageError for a path that is no folder, ModelError when the hub does not give the model.
    """
    name = os.fspath(model)
    path = Path(name).expanduser()
    if name and path.is_dir():
        return path
    if name and path.exists():
        raise UsageError(f"{name} is a file: give the folder that holds config.json and the weights")
    looks_like_a_path = name.startswith((".", "~", os.sep)) or name.endswith(os.sep) or "\\" in name
    if looks_like_a_path or not HUB_ID.fullmatch(name):
        raise UsageError(f"no such directory: {name}")
    return _download(name)


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    nowhere = f"{hub_id} is no directory here, and"
    try:
        return Path(snapshot_download(hub_id, allow_patterns=WANTED))
    except LocalEntryNotFoundError as error:
        raise ModelError(f"{nowhere} the Hugging Face hub cannot be reached to fetch it") from error
    except GatedRepoError as error:
        raise ModelError(f"{hub_id} is gated: accept its terms on its page, then `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"{nowhere} the Hugging Face hub shows no such model to you") from error
    except Exception as error:  # the client's own, its transport's, the proxy's: many classes, one meaning
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{nowhere} the Hugging Face hub does not give it: {reason}") from error


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
