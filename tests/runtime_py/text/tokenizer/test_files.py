"""Values of the wrong type in the files of a tokenizer: file and key, in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from o2o.errors import ModelError
from runtime_py.text.tokenizer import load_tokenizer
from tests.runtime_py.tokenizers_on_disk import write_byte_level

CONFIG, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return (write_byte_level(tmp_path_factory.mktemp("bytes")) / "tokenizer.json").read_bytes()


def load(folder: Path, vocabulary: bytes, file: str, key: str, value: Any) -> None:
    (folder / "tokenizer.json").write_bytes(vocabulary)
    (folder / file).write_text(json.dumps({key: value}))
    load_tokenizer(folder)


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        *((file, role, value) for file in (CONFIG, MAP) for role in ("pad_token", "bos_token", "mask_token")
          for value in (True, 5, ["<s>"], {"content": 5}, {}, {"content": "a", "lstrip": "yes"})),
        *((file, key, value) for file in (CONFIG, MAP) for value in (5, "text", [5], [None], True)
          for key in ("additional_special_tokens", "extra_special_tokens")),
        (CONFIG, "extra_special_tokens", {"image_token": 5}),
        (CONFIG, "additional_special_tokens", {"image_token": "a"}),
        (CONFIG, "added_tokens_decoder", ["x"]),
        (CONFIG, "added_tokens_decoder", {"5": "x"}),
        (CONFIG, "added_tokens_decoder", {"x": {"content": "x"}}),
        (CONFIG, "added_tokens_decoder", {"-1": {"content": "x"}}),
        (CONFIG, "added_tokens_decoder", {"5": {"content": "x", "special": 1}}),
        (CONFIG, "add_bos_token", "yes"),
        (CONFIG, "add_eos_token", 1),
        (CONFIG, "add_prefix_space", "no"),
        (CONFIG, "legacy", []),
        (CONFIG, "split_special_tokens", 0),
        (CONFIG, "chat_template", 5),
        (CONFIG, "chat_template", ["x"]),
        (CONFIG, "chat_template", [{"name": "x"}]),
        (CONFIG, "tokenizer_class", 5),
        (CONFIG, "model_max_length", []),
        (CONFIG, "auto_map", 5),
        (CONFIG, "image_token", {}),
        (CONFIG, "image_token", ["<image>"]),
        (MAP, "image_token", 5),
        (ADDED, "<x>", "5"),
        (ADDED, "<x>", -5),
        (ADDED, "<x>", 1.5),
        (ADDED, "<x>", True),
        ("config.json", "model_type", 5),
    ],
)  # fmt: skip
def test_wrong(tmp_path: Path, byte_level: bytes, file: str, key: str, value: Any) -> None:
    with pytest.raises(ModelError) as error:
        load(tmp_path, byte_level, file, key, value)
    assert str(error.value).startswith(f"{tmp_path / file}: {key} must be ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        (CONFIG, "pad_token", None),
        (CONFIG, "pad_token", {"content": "<|endoftext|>", "lstrip": False, "__type": "AddedToken"}),
        (CONFIG, "additional_special_tokens", ["<|endoftext|>", {"content": "<|endoftext|>"}]),
        (CONFIG, "extra_special_tokens", {"image_token": "<|endoftext|>"}),
        (CONFIG, "added_tokens_decoder", {"0": {"content": "<|endoftext|>", "special": True}}),
        (CONFIG, "added_tokens_decoder", None),
        (CONFIG, "model_max_length", 1e30),
        (CONFIG, "bos_token", ""),
        (CONFIG, "image_token", "<image>"),
        (CONFIG, "num_image_token", 256),
        (CONFIG, "chat_template", [{"name": "x", "template": "y", "more": 1}]),
        (CONFIG, "auto_map", {"AutoTokenizer": ["a", None]}),
        (MAP, "eos_token", {"content": "<|endoftext|>", "single_word": False}),
        (ADDED, "<|endoftext|>", 0),
        ("config.json", "time_step_limit", [0.0, float("inf")]),
    ],
)
def test_right(tmp_path: Path, byte_level: bytes, file: str, key: str, value: Any) -> None:
    load(tmp_path, byte_level, file, key, value)


@pytest.mark.parametrize("content", [b"", b"\xff", b"{,", b"[1]", b"[" * 100_000])
@pytest.mark.parametrize("file", [CONFIG, MAP, ADDED, "config.json"])
def test_damaged(tmp_path: Path, byte_level: bytes, file: str, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(byte_level)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ModelError, match=rf"{file} is not (JSON|a JSON object)[^\n]*$"):
        load_tokenizer(tmp_path)
