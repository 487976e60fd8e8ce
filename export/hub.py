"""Where a checkpoint is: a folder here, or a model of the Hugging Face hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from o2o.errors import ModelError, UsageError

# What is fetched from the hub: beside the weights, and the weights in the first of the forms that it has.
WANTED = [
    *("config.json", "generation_config.json", "*.index.json"),
    *("tokenizer*", "special_tokens_map.json", "vocab.json", "merges.txt", "*.tiktoken", "chat_template*"),
]
WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*.pt", "*.pth")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


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
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    nowhere = f"{hub_id} is no directory here, and"
    try:
        return _snapshot(hub_id)
    except LocalEntryNotFoundError as error:
        raise ModelError(f"{nowhere} the Hugging Face hub cannot be reached to fetch it") from error
    except GatedRepoError as error:
        raise ModelError(f"{hub_id} is gated: accept its terms on its page, then `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"{nowhere} the Hugging Face hub shows no such model to you") from error
    except Exception as error:  # the client's own, its transport's, the proxy's: many classes, one meaning
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{nowhere} the Hugging Face hub does not give it: {reason}") from error


def _snapshot(hub_id: str) -> Path:
    """The folder of the model's newest state, with its weights in one form only: they may be gigabytes."""
    from huggingface_hub import snapshot_download

    for pattern in WEIGHTS:
        folder = Path(snapshot_download(hub_id, allow_patterns=[*WANTED, pattern]))
        if any(folder.glob(pattern)):
            break
    return folder
