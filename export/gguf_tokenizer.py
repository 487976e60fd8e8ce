"""The tokenizer of a GGUF file as Hugging Face's files, by transformers' converters."""

from __future__ import annotations

from pathlib import Path

from transformers import TokenizersBackend
from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer

from export.model import summarize_error
from o2o.weights.gguf_file import GgufFile

ADDS_BOS = ("llama3", "llama-v3", "llama-bpe", "tekken")
"""Pre-tokenizers for which llama.cpp adds a begin token if the file does not say."""


def write_tokenizer(file: GgufFile, folder: Path) -> str | None:
    """Write `tokenizer.json`, `tokenizer_config.json` and the chat template.

    Args:
        file: The GGUF file.
        folder: Where to write.

    Returns:
        None; or the reason why there is no tokenizer.
    """
    kind = file.metadata.get("tokenizer.ggml.model")
    if kind in (None, "no_vocab", "none"):
        return f"{file.path} has no tokenizer: run the package with --tokenizer DIR"
    try:
        architecture, tokenizer, config = get_gguf_tokenizer(str(file.path))
        if tokenizer.get("pre_tokenizer_type") in ADDS_BOS:
            config.setdefault("add_bos_token", True)
        backend, _ = convert_gguf_tokenizer(architecture, tokenizer)
        TokenizersBackend(tokenizer_object=backend, **config).save_pretrained(folder)
    except Exception as error:
        reason = f"transformers cannot convert its tokenizer {kind!r}{summarize_error(error)}"
        return f"{file.path}: {reason}; run the package with --tokenizer DIR"
    return None
