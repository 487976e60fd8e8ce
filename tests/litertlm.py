"""A package with a toy model and a tokenizer of words, and its `.litertlm` file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

from o2o.filters.pack_litertlm import PackLitertlm
from tests.runtime_py.toy import VOCAB, Toy

WORDS = ["<s>", "</s>", "<u>", *"abcdefgh"]
TEMPLATE = "{{ bos_token }}{% for message in messages %}<u> {{ message.content }} {% endfor %}"
TOY: dict[str, Any] = {"ai_edge": True, "prefill_length": 0, "cached_lengths": (2, 4), "capacity": 16}


def word_tokenizer(begins: bool = True) -> Tokenizer:
    """A tokenizer with a token for each of WORDS."""
    assert len(WORDS) == VOCAB
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in WORDS[:3]])
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=["<s>", "$A"], special_tokens=[("<s>", 0)]
        )
    return tokenizer


def write_package(folder: Path, generation: dict[str, Any] | None = None, **toy: Any) -> Path:
    """A folder with `model.tflite`, `tokenizer.json`, a chat template and settings for generation."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.tflite").write_bytes(Toy(**{**TOY, **toy}).file)
    word_tokenizer().save(str(folder / "tokenizer.json"))
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokens, "chat_template": TEMPLATE}))
    (folder / "generation_config.json").write_text(json.dumps(generation or {"eos_token_id": 1}))
    return folder


def pack(folder: Path, *arguments: str) -> Path:
    """Pack a folder into `model.litertlm` next to it."""
    target = folder.with_name(f"{folder.name}.litertlm")
    assert PackLitertlm.main([str(folder), "-o", str(target), *arguments]) == 0
    return target
