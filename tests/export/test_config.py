"""One reader of config.json, whose facts are those of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from export.config import CheckpointConfig
from export.model import LanguageModel
from o2o.errors import ModelError
from tests.checkpoints import GROUPED

WITHOUT_HEAD_DIM = {name: value for name, value in GROUPED.items() if name != "head_dim"}
MULTI_HEAD = {name: value for name, value in WITHOUT_HEAD_DIM.items() if name != "num_key_value_heads"}
FAMILIES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3"), GROUPED
    ),
    **dict.fromkeys(
        ("olmo", "olmo2", "granite", "starcoder2", "cohere", "smollm3", "glm", "exaone4"), GROUPED
    ),
    **dict.fromkeys(("phi", "stablelm"), WITHOUT_HEAD_DIM),
    **dict.fromkeys(("gpt2", "gpt_neox", "opt", "gptj"), MULTI_HEAD),
    "qwen2 without a window": GROUPED | {"use_sliding_window": False, "sliding_window": 16},
    "qwen2 with a window": GROUPED | {"use_sliding_window": True, "sliding_window": 16},
    "mistral with a window": GROUPED | {"sliding_window": 16},
    "gemma2 without caps": GROUPED | {"attn_logit_softcapping": None},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_facts_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    model_type = name.split()[0]
    config = AutoConfig.for_model(model_type, **FAMILIES[name] | {"pad_token_id": 0})
    config.save_pretrained(tmp_path)
    ours, theirs = CheckpointConfig.read(tmp_path), LanguageModel.read(tmp_path)
    assert ours.model_type == theirs.kind == model_type
    assert ours.layers == theirs.layers
    assert (ours.kv_heads, ours.head_dim) == (theirs.key_value_heads, theirs.head_dim)
    text = theirs.config.get_text_config(decoder=True)
    assert ours.positions == getattr(text, "max_position_embeddings", None)
    assert ours.sliding_window == getattr(text, "sliding_window", None)
    assert (ours.heads, ours.hidden_size, ours.vocab_size) == (
        text.num_attention_heads,
        text.hidden_size,
        text.vocab_size,
    )
    assert ours.attention_softcap == getattr(text, "attn_logit_softcapping", None)


def config_of(**fields: Any) -> CheckpointConfig:
    return CheckpointConfig(fields, "folder")


def test_the_language_model_of_several_models() -> None:
    config = config_of(model_type="gemma3", text_config={"model_type": "gemma3_text", "num_hidden_layers": 2})
    assert (config.model_type, config.layers) == ("gemma3_text", 2)
    assert config_of(model_type="llava", text_config={"num_hidden_layers": 2}).model_type == "llava"


@pytest.mark.parametrize(
    ("fields", "fact", "reason"),
    [
        ({}, "model_type", "it lacks model_type"),
        ({}, "layers", "it lacks num_hidden_layers"),
        ({"num_attention_heads": 4}, "head_dim", "it lacks hidden_size"),
        ({"vocab_size": "many"}, "vocab_size", "vocab_size is 'many'"),
        ({"n_positions": -1}, "positions", "n_positions is -1"),
        ({"n_layer": True}, "layers", "n_layer is True"),
    ],
)
def test_a_fact_that_cannot_be_used(fields: dict[str, Any], fact: str, reason: str) -> None:
    with pytest.raises(ModelError) as error:
        getattr(config_of(**fields), fact)
    assert str(error.value) == f"folder: no usable config.json ({reason})"


@pytest.mark.parametrize("text", [None, "{,", "[]", "7", '{"text_config": 3}', "\xff"])
def test_a_file_that_cannot_be_used(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelError, match=r"no usable config\.json \(") as error:
        CheckpointConfig.read(tmp_path)
    assert "\n" not in str(error.value)


def test_a_model_without_a_limit_of_positions() -> None:
    assert config_of(max_position_embeddings=0).positions is None
    assert config_of(**json.loads('{"max_position_embeddings": null}')).positions is None
