"""Tokenizers: `tokenizer.json` or `tokenizer.model` of a package, with the same ids as transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from o2o.errors import ModelError


class Tokenizer(Protocol):
    """Encodes text as token ids, and decodes ids."""

    @property
    def vocab_size(self) -> int:
        """The number of ids, without added tokens."""
        ...

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Encode a text.

        Args:
            text: The text.
            special: Add the begin and end tokens that this tokenizer adds.

        Returns:
            The token ids.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Decode token ids.

        Args:
            ids: Token ids.

        Returns:
            Their text, without hidden tokens.
        """
        ...

    def is_hidden(self, token: int) -> bool:
        """Check whether `decode` omits a token.

        Args:
            token: An id.

        Returns:
            Whether it is a special token, or the id of no token.
        """
        ...

    def is_byte(self, token: int) -> bool:
        """Check for a byte token: a run of byte tokens is decoded as a whole.

        Args:
            token: An id.

        Returns:
            Whether its text depends on the tokens after it.
        """
        ...


def has_tokenizer(directory: Path) -> bool:
    """Check for a tokenizer file.

    Args:
        directory: A package's folder.

    Returns:
        Whether `load_tokenizer` finds one.
    """
    return any((directory / name).exists() for name in ("tokenizer.json", "tokenizer.model"))


def load_tokenizer(directory: Path) -> Tokenizer:
    """Load a package's tokenizer: `tokenizer.json` if it exists, else `tokenizer.model`.

    Args:
        directory: The package's folder.

    Returns:
        The tokenizer.

    Raises:
        ModelError: Neither file exists, or it is damaged.
    """
    config = read_json(directory / "tokenizer_config.json")
    if (path := directory / "tokenizer.json").exists():
        from runtime_py.text.tokenizer.hugging_face import HuggingFaceTokenizer

        return HuggingFaceTokenizer(path, config, read_json(directory / "config.json").get("model_type"))
    if (path := directory / "tokenizer.model").exists():
        from runtime_py.text.tokenizer.sentence_piece import SentencePieceTokenizer

        return SentencePieceTokenizer(path, config)
    raise ModelError(
        f"{directory} has no tokenizer.json and no tokenizer.model: copy it there from the checkpoint, or "
        f"give the checkpoint's folder with --tokenizer"
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file.

    Args:
        path: The file.

    Returns:
        The object in it; an empty one when there is no such file.

    Raises:
        ModelError: The file is not JSON, or not an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} is not a JSON object")
    return content


def special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """Return the special tokens that have a role: `bos_token`, `eos_token`, ...

    Args:
        config: The content of `tokenizer_config.json`.

    Returns:
        The text of each, by role.
    """
    roles = (f"{role}_token" for role in ("bos", "eos", "unk", "pad", "sep", "cls", "mask"))
    texts = {role: _content(config.get(role)) for role in roles}
    return {role: text for role, text in texts.items() if text}


def special_names(config: dict[str, Any]) -> list[str]:
    """Return the text of all special tokens.

    Args:
        config: The content of `tokenizer_config.json`.

    Returns:
        The special tokens with a role, then the additional ones.
    """
    names = list(special_tokens(config).values())
    for key in ("additional_special_tokens", "extra_special_tokens"):
        additional = config.get(key) or []
        texts = map(_content, additional.values() if isinstance(additional, dict) else additional)
        names += [text for text in texts if text]
    return names


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token
