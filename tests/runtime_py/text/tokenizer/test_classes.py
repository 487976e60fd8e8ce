"""The steps of a class, and the selection of the class, are those of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.models.auto.tokenization_auto import (
    MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS,
    TOKENIZER_MAPPING_NAMES,
)

from o2o.errors import UsageError
from runtime_py.text.tokenizer import load_tokenizer
from runtime_py.text.tokenizer.classes import CLASSES, GENERIC, OVERRIDING, REGISTERED, class_of
from tests.runtime_py.tokenizers_on_disk import LLAMA, write_byte_level, write_config, write_sentencepiece

TEXTS = [
    "Lily picked up a flower.",
    "",
    " ",
    "   a  b\n\n c\t",
    "I'M 12345 it's  x",
    "<s>hi</s> there <unk> <|endoftext|>",
    "ｆｕｌｌ e\u0301 ﬁ नमस्ते สวัสดี",
    "😀 naïve 日本語\r\n",
    "▁low <PRE> ▁<PRE>",
]


def test_the_table_is_that_of_transformers() -> None:
    for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        registered = TOKENIZER_MAPPING_NAMES.get(model_type)
        if registered == "MistralCommonBackend":
            registered = GENERIC  # for checkpoints without tekken.json
        if registered == GENERIC or registered in CLASSES:
            assert REGISTERED[model_type] == registered
        else:
            assert model_type not in REGISTERED, model_type
    specific = {model_type for model_type, name in REGISTERED.items() if name != GENERIC}
    assert specific & MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS == OVERRIDING


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("kinds")
    model = write_sentencepiece(root / "model")
    write_config(model, **LLAMA)
    AutoTokenizer.from_pretrained(model).save_pretrained(root / "json")
    return {"byte_level": write_byte_level(root / "bytes"), "json": root / "json", "model": model}


def compare(folder: Path) -> None:
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert ours.special_tokens == theirs.special_tokens_map
    for text in TEXTS:
        try:
            ids = theirs.encode(text)
        except Exception:
            with pytest.raises(UsageError, match="the tokenizer cannot encode the text: Unk token"):
                ours.encode(text)
            continue
        assert ours.encode(text) == ids, text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), text


@pytest.mark.parametrize("name", [*CLASSES, "PreTrainedTokenizerFast", "NoSuchTokenizer"])
@pytest.mark.parametrize("kind", ["byte_level", "json", "model"])
@pytest.mark.parametrize(
    "config",
    [{}, {"add_prefix_space": False}, {"add_prefix_space": True, "legacy": True, "add_bos_token": True}],
)
def test_a_declared_class(
    folders: dict[str, Path], tmp_path: Path, name: str, kind: str, config: dict[str, Any]
) -> None:
    if kind == "model" and name not in CLASSES:
        pytest.skip("transformers leaves out the leading space of the SentencePiece model")
    file = "tokenizer.model" if kind == "model" else "tokenizer.json"
    (tmp_path / file).write_bytes((folders[kind] / file).read_bytes())
    write_config(tmp_path, tokenizer_class=name, **config)
    compare(tmp_path)


@pytest.mark.parametrize(
    ("model_type", "declared"),
    [
        ("llama", "LlamaTokenizerFast"),
        ("llama", None),
        ("mistral", "LlamaTokenizer"),
        ("phi3", "LlamaTokenizer"),
        ("gemma", "LlamaTokenizer"),
        ("gemma", None),
        ("qwen2", "PreTrainedTokenizerFast"),
        ("qwen3", "PreTrainedTokenizerFast"),
        ("qwen3", "Qwen2TokenizerFast"),
        ("gpt2", "GPT2TokenizerFast"),
        ("gpt_neox", None),
        ("olmo2", "GPT2Tokenizer"),
        ("smollm3", "GPT2Tokenizer"),
    ],
)
@pytest.mark.parametrize("kind", ["byte_level", "json"])
def test_the_selection(
    folders: dict[str, Path], tmp_path: Path, kind: str, model_type: str, declared: str | None
) -> None:
    (tmp_path / "tokenizer.json").write_bytes((folders[kind] / "tokenizer.json").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    write_config(tmp_path, **({} if declared is None else {"tokenizer_class": declared}))
    compare(tmp_path)
    theirs = type(AutoTokenizer.from_pretrained(tmp_path)).__name__
    ours = class_of(
        {"tokenizer_class": declared}, {"model_type": model_type}, byte_level=kind == "byte_level"
    )
    assert (ours if ours in CLASSES else GENERIC) == (theirs if theirs in CLASSES else GENERIC)
