"""Resolution of a checkpoint: a local folder, or a model of the Hugging Face hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from o2o.errors import ModelError, UsageError

# Files to fetch from the hub, in addition to the weights in the first available format of WEIGHTS.
WANTED = [
    *("config.json", "generation_config.json", "*.index.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
    *("*.tiktoken", "chat_template*", "additional_chat_templates/*"),
]
WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*.pt", "*.pth")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def resolve(model: str | os.PathLike[str], fetch: bool = True) -> Path:
    """Return a checkpoint's folder. A local folder wins over a hub id of the same name.

    Args:
        model: A folder, or a hub id, which is fetched or found in the hub's local cache.
        fetch: False to fetch nothing.

    Returns:
        The folder.

    Raises:
        UsageError: The path is no folder.
        ModelError: The hub does not provide the model.
    """
    name = os.fspath(model)
    path = Path(name).expanduser()
    if name and path.is_dir():
        return path
    if name and path.exists():
        raise UsageError(f"{name} is a file: give the folder that holds config.json and the weights")
    looks_like_a_path = name.startswith((".", "~", os.sep)) or name.endswith(os.sep) or "\\" in name
    if looks_like_a_path or not HUB_ID.fullmatch(name):
        raise UsageError(f"no such folder: {name}")
    return _download(name) if fetch else _cached(name)


def _download(hub_id: str) -> Path:
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    nowhere = f"{hub_id} is no local folder, and"
    try:
        return _snapshot(hub_id)
    except LocalEntryNotFoundError as error:
        raise ModelError(f"{nowhere} the Hugging Face hub cannot be reached to fetch it") from error
    except GatedRepoError as error:
        raise ModelError(f"{hub_id} is gated: accept its terms on its page, then `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"{nowhere} the Hugging Face hub has no model of that name that you may read"
        ) from error
    except Exception as error:  # errors of the client, its transport, a proxy
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{nowhere} fetching it from the Hugging Face hub failed: {reason}") from error


def _cached(hub_id: str) -> Path:
    """The model's folder in the hub's cache. Raises ModelError if it was not fetched before."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, local_files_only=True))
    except Exception as error:
        raise ModelError(
            f"{hub_id} is no local folder, and is not in the hub's cache: `hf download {hub_id}` fetches it"
        ) from error


def _snapshot(hub_id: str) -> Path:
    """Fetch the model's newest state, with its weights in one format only: they may be gigabytes."""
    from huggingface_hub import snapshot_download

    for pattern in WEIGHTS:
        folder = Path(snapshot_download(hub_id, allow_patterns=[*WANTED, pattern]))
        if any(folder.glob(pattern)):
            break
    return folder
