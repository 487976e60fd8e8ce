"""Tokenizers: a package's `tokenizer.json` or `tokenizer.model`, giving the ids that Hugging Face gives."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from o2o.errors import ModelError


class Tokenizer(Protocol):
    """Text to ids and back."""

    @property
    def vocab_size(self) -> int:
        """How many ids there are, added tokens left out."""
        ...

    def encode(self, text: str, special: bool = True) -> list[int]:
        """The ids of a prompt. special: with the begin and end ids that this tokenizer adds."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, hidden ones left out."""
        ...

    def is_hidden(self, token: int) -> bool:
        """Whether `decode` leaves `token` out: it is special, or no token at all."""
        ...

    def is_byte(self, token: int) -> bool:
        """Whether `token` is a byte whose meaning depends on what comes after it."""
        ...


def has_tokenizer(directory: Path) -> bool:
    """Whether `load_tokenizer` finds something in `directory`."""
    return any((directory / name).exists() for name in ("tokenizer.json", "tokenizer.model"))


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of the package in `directory`: `tokenizer.json` if it is there, else `tokenizer.model`.

    Raises ModelError when neither is there, or when the file is not what its name says.
    """
    config = read_json(directory / "tokenizer_config.json")
    if (path := directory / "tokenizer.json").exists():
        from runtime_py.text.tokenizer.hugging_face import HuggingFaceTokenizer

        return HuggingFaceTokenizer(path, config, read_json(directory / "config.json").get("model_type"))
    if (path := directory / "tokenizer.model").exists():
        from runtime_py.text.tokenizer.sentence_piece import SentencePieceTokenizer

        return SentencePieceTokenizer(path, config)
    raise ModelError(
        f"{directory} has no tokenizer.json and no tokenizer.model: copy them there from the checkpoint, "
        "or name its folder with --tokenizer"
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in the JSON file at `path`, empty when there is no such file. Raises ModelError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no JSON object")
    return content


def special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """The special tokens that have a role in a `tokenizer_config.json`, as text: `bos_token`, ..."""
    roles = (f"{role}_token" for role in ("bos", "eos", "unk", "pad", "sep", "cls", "mask"))
    texts = {role: _content(config.get(role)) for role in roles}
    return {role: text for role, text in texts.items() if text}


def special_names(config: dict[str, Any]) -> list[str]:
    """All special tokens that a `tokenizer_config.json` names, as text."""
    named = list(special_tokens(config).values())
    for key in ("additional_special_tokens", "extra_special_tokens"):
        more = config.get(key) or []
        texts = map(_content, more.values() if isinstance(more, dict) else more)
        named += [text for text in texts if text]
    return named


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token
