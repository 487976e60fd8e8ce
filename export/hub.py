"""Resolution of a checkpoint: a local folder, or a model of the Hugging Face hub."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from export.derive import derived, needs_derivation
from export.loading_flags import MODEL_FILE, is_trusted, model_file
from o2o.errors import ModelError, UsageError
from o2o.weights import derived_checkpoint
from o2o.weights.gguf_file import is_gguf, part_paths

# Files to fetch from the hub, in addition to the weights in the first available format of WEIGHTS.
WANTED = [
    *("config.json", "generation_config.json", "*.index.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
    *("*.tiktoken", "chat_template*", "additional_chat_templates/*"),
]
WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*.pt", "*.pth")
ADAPTER_WANTED = (
    "adapter_config.json",
    "adapter_model.*",
    "tokenizer*",
    "special_tokens_map.json",
    "chat_template*",
)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def resolve(
    model: str | os.PathLike[str],
    fetch: bool = True,
    adapter: str | os.PathLike[str] | None = None,
    log: Callable[[str], None] = lambda line: print(f"note: {line}", file=sys.stderr),
) -> Path:
    """Return a checkpoint's folder that export can read.

    It is a derived checkpoint (`export.derive`) for a GGUF file, an adapter, or a multimodal model.

    Args:
        model: A folder, a GGUF file, or a hub id, which is fetched or found in the hub's local cache. A local
            folder wins over a hub id of the same name.
        fetch: False to fetch nothing.
        adapter: The folder or hub id of an adapter (LoRA) to merge; None for none.
        log: Receives lines for the user: what is left out.

    Returns:
        The folder.

    Raises:
        UsageError: The path is no folder and no GGUF file, or `--model-file` does not exist.
        ModelError: The hub does not provide the model, or the model is damaged or not supported.
    """
    if (own := model_file()) is not None and not own.is_file():
        raise UsageError(f"{MODEL_FILE} {own}: no such file")
    path = _only_gguf(_local(model, fetch))
    lora = None if adapter is None else _local(adapter, fetch, ADAPTER_WANTED)
    if lora is not None and not lora.is_dir():
        raise UsageError(f"--adapter {adapter}: give the folder that holds adapter_config.json")
    if lora is None and not needs_derivation(path):
        return path
    return derived(path, lora, log)


def _only_gguf(path: Path) -> Path:
    """The GGUF file, or its first part, of a folder that has no other weights; else the path itself."""
    others = (*WEIGHTS, derived_checkpoint.FILE)
    if path.is_file():
        first = part_paths(path)[0]
        return first if first.is_file() else path
    if any(True for pattern in others for _ in path.glob(pattern)):
        return path
    files = sorted(path.glob("*.gguf"))
    if files and files == part_paths(files[0]):
        return files[0]
    if len(files) > 1:
        raise UsageError(f"{path} has {len(files)} GGUF files: give one of them, such as {files[0]}")
    return files[0] if files else path


def _local(model: str | os.PathLike[str], fetch: bool, wanted: Sequence[str] = ()) -> Path:
    """A folder or a GGUF file on this machine."""
    name = os.fspath(model)
    path = Path(name).expanduser()
    if name and path.is_dir():
        return path
    if name and path.is_file() and (is_gguf(path) or model_file()):
        return path
    if name and path.exists():
        wrong = "is not a GGUF file" if path.suffix == ".gguf" else "is a file"
        raise UsageError(
            f"{name} {wrong}: give a GGUF file, or the folder that holds config.json and the weights; "
            f"or a file of weights with {MODEL_FILE}"
        )
    looks_like_a_path = name.startswith((".", "~", os.sep)) or name.endswith(os.sep) or "\\" in name
    if looks_like_a_path or not HUB_ID.fullmatch(name):
        raise UsageError(f"no such {'file' if name.endswith('.gguf') else 'folder'}: {name}")
    return _download(name, wanted) if fetch else _cached(name)


def _download(hub_id: str, wanted: Sequence[str]) -> Path:
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    nowhere = f"{hub_id} is no local folder, and"
    try:
        return _snapshot(hub_id, wanted)
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


def _snapshot(hub_id: str, wanted: Sequence[str] = ()) -> Path:
    """Fetch the model's newest state, with its weights in one format only: they may be gigabytes."""
    from huggingface_hub import snapshot_download

    if wanted:
        return Path(snapshot_download(hub_id, allow_patterns=list(wanted)))
    for pattern in WEIGHTS:
        code = ["*.py"] if is_trusted() else []
        folder = Path(snapshot_download(hub_id, allow_patterns=[*WANTED, *code, pattern]))
        if any(folder.glob(pattern)):
            break
    return folder
