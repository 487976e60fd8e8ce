"""The JSON files of a tokenizer except its vocabulary, and the types of their values."""

from __future__ import annotations

from typing import Any

from runtime_py.text.files import Place
from runtime_py.text.json_file import (
    FLAG,
    NATURAL,
    NULL,
    NUMBER,
    TEXT,
    Type,
    list_of,
    object_of,
    read_json,
)

ADDED_TOKENS_NAME = "added_tokens.json"
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
"""The flags of `tokenizers.AddedToken`."""

TOKEN_OBJECT = Type(
    ('an object {"content": "..."}',),
    lambda value: (
        isinstance(value, dict)
        and TEXT.accepts(value.get("content"))
        and all(isinstance(value.get(flag, False), bool) for flag in FLAGS)
    ),
)
TOKEN = TEXT | TOKEN_OBJECT
ADDED_TOKENS = Type(
    ('an object by token id (each value an object {"content": "..."})',),
    lambda value: (
        isinstance(value, dict)
        and all(key.isascii() and key.isdigit() for key in value)
        and all(map(TOKEN_OBJECT.accepts, value.values()))
    ),
)
TEMPLATE = Type(
    ('an object with the strings "name" and "template"',),
    lambda value: (
        isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("name", "template"))
    ),
)
_TOKENS: dict[str, Type] = {
    "additional_special_tokens": list_of(TOKEN) | NULL,
    "extra_special_tokens": list_of(TOKEN) | object_of(TOKEN) | NULL,
    **{f"{role}_token": TOKEN | NULL for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")},
}
_FLAGS = (
    *("add_bos_token", "add_eos_token", "add_prefix_space", "legacy"),
    *("split_special_tokens", "clean_up_tokenization_spaces"),
)
TOKENIZER_CONFIG: dict[str, Type] = {
    **_TOKENS,
    "added_tokens_decoder": ADDED_TOKENS | NULL,
    **dict.fromkeys(_FLAGS, FLAG | NULL),
    "chat_template": TEXT | list_of(TEMPLATE) | object_of(TEXT) | NULL,
    "*_token": TOKEN | FLAG | NUMBER | NULL,
    "tokenizer_class": TEXT | NULL,
    "auto_map": Type(("a list", "an object"), lambda value: isinstance(value, list | dict)) | NULL,
    "model_max_length": NUMBER | NULL,
}
SPECIAL_TOKENS_MAP: dict[str, Type] = {**_TOKENS, "*": TOKEN | NULL}
ADDED_TOKENS_FILE: dict[str, Type] = {"*": NATURAL}
MODEL_CONFIG: dict[str, Type] = {"tokenizer_class": TEXT | NULL, "model_type": TEXT | NULL}


def read_tokenizer_config(directory: Place) -> dict[str, Any]:
    """Read `tokenizer_config.json`.

    Args:
        directory: The tokenizer's folder.

    Returns:
        Its content; an empty object when there is no such file.

    Raises:
        ModelError: It is not JSON, or a value has the wrong type.
    """
    return read_json(directory / "tokenizer_config.json", TOKENIZER_CONFIG)


def read_special_tokens_map(directory: Place) -> dict[str, Any]:
    """Read `special_tokens_map.json`, which older versions of transformers write.

    Args:
        directory: The tokenizer's folder.

    Returns:
        Its content; an empty object when there is no such file.

    Raises:
        ModelError: It is not JSON, or a value has the wrong type.
    """
    return read_json(directory / "special_tokens_map.json", SPECIAL_TOKENS_MAP)


def read_added_tokens(directory: Place) -> dict[str, int]:
    """Read `added_tokens.json`, which older versions of transformers write.

    Args:
        directory: The tokenizer's folder.

    Returns:
        Id by token; empty when there is no such file.

    Raises:
        ModelError: It is not JSON, or a value has the wrong type.
    """
    return read_json(directory / ADDED_TOKENS_NAME, ADDED_TOKENS_FILE)


def read_model_config(directory: Place) -> dict[str, Any]:
    """Read `config.json`.

    Args:
        directory: The tokenizer's folder.

    Returns:
        Its content; an empty object when there is no such file.

    Raises:
        ModelError: It is not JSON, or its `model_type` is not a string.
    """
    return read_json(directory / "config.json", MODEL_CONFIG)
