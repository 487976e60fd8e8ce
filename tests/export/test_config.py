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
    **dict.fromkeys(("gpt2", "gpt_neox", "opt", "gptj", "codegen", "xglm", "biogpt", "ctrl"), MULTI_HEAD),
    "falcon": MULTI_HEAD,
    "falcon of the new architecture": MULTI_HEAD | {"new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon of the first layout": MULTI_HEAD | {"multi_query": False},
    "bloom": MULTI_HEAD,
    "mpt": MULTI_HEAD,
    "gpt_bigcode": MULTI_HEAD,
    "qwen2 without a window": GROUPED | {"use_sliding_window": False, "sliding_window": 16},
    "qwen2 with a window": GROUPED
    | {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
    "qwen2 with a window in no layer": GROUPED | {"use_sliding_window": True, "sliding_window": 16},
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
    assert {(ours.kv_heads, ours.head_dim)} == set(theirs.cache_shapes)
    text = theirs.config.get_text_config(decoder=True)
    assert ours.positions == getattr(text, "max_position_embeddings", None)
    kinds = getattr(text, "layer_types", None) or ["sliding_attention"]
    windowed = "sliding_attention" in kinds
    assert ours.sliding_window == (getattr(text, "sliding_window", None) if windowed else None)
    assert (ours.heads, ours.hidden_size, ours.vocab_size) == (
        text.num_attention_heads,
        text.hidden_size,
        text.vocab_size,
    )
    assert ours.attention_softcap == getattr(text, "attn_logit_softcapping", None)


@pytest.mark.parametrize(
    ("fields", "window"),
    [
        ({"model_type": "mistral"}, 4096),  # a default of transformers
        ({"model_type": "mistral", "sliding_window": None}, None),
        ({"model_type": "qwen2", "sliding_window": 16}, None),  # use_sliding_window is false by default
        ({"model_type": "gpt_neo", "window_size": 16}, 16),
        ({"model_type": "gpt_neo", "attention_types": [[["global"], 24]]}, None),
        ({"model_type": "gpt_neo", "attention_layers": ["global", "local"], "window_size": 8}, 8),
        ({"model_type": "gemma2", "layer_types": ["full_attention"] * 2}, None),
        ({"model_type": "llama", "attention_chunk_size": 16}, 16),
        ({"model_type": "no-such-type", "attention_window_size": 16, "num_window_layers": 3}, 16),
        ({"model_type": "no-such-type", "attn_config": {"sliding_window_size": 16}}, 16),
        ({"model_type": "no-such-type", "sliding_window_size": -1}, None),
        ({"model_type": "modernbert-decoder", "local_attention": 32, "sliding_window": 64}, 16),
    ],
)
def test_a_window_under_any_name(fields: dict[str, Any], window: int | None) -> None:
    assert CheckpointConfig(fields, "folder").sliding_window == window


@pytest.mark.parametrize(
    ("fields", "layers"),
    [
        ({"model_type": "gemma2", "num_hidden_layers": 4}, [0, 2]),
        ({"model_type": "gemma3_text", "num_hidden_layers": 7}, [0, 1, 2, 3, 4, 6]),
        ({"model_type": "gemma3_text", "num_hidden_layers": 4, "sliding_window_pattern": 2}, [0, 2]),
        ({"model_type": "cohere2", "num_hidden_layers": 5}, [0, 1, 2, 4]),
        ({"model_type": "cohere2", "num_hidden_layers": 5, "sliding_window_pattern": 3}, [0, 1, 3, 4]),
        ({"model_type": "olmo3", "num_hidden_layers": 4, "layer_types": ["full_attention"] * 4}, []),
        (
            {
                "model_type": "qwen2",
                "num_hidden_layers": 3,
                "use_sliding_window": True,
                "max_window_layers": 1,
            },
            [1, 2],
        ),
        ({"model_type": "gpt_neo", "num_layers": 4, "attention_types": [[["global", "local"], 2]]}, [1, 3]),
        ({"model_type": "mistral", "num_hidden_layers": 2}, [0, 1]),
    ],
)
def test_which_layers_have_a_window(fields: dict[str, Any], layers: list[int]) -> None:
    """Also where the file has no list of layers, as the original Gemma 2 and 3."""
    config = CheckpointConfig(fields, "folder")
    assert config.windowed_layers == layers
    assert bool(config.sliding_window) == bool(layers)


def test_rotary_positions() -> None:
    def ropes(**fields: Any) -> list[tuple[str, float, int | None]]:
        return [(rope.kind, rope.factor, rope.original) for rope in config_of(**fields).ropes]

    assert ropes() == []
    assert ropes(rope_scaling=None) == []
    assert ropes(rope_scaling={"type": "linear", "factor": 2}) == [("linear", 2.0, None)]
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    assert ropes(rope_parameters=yarn) == [("yarn", 4.0, 32)]
    layers = {"full_attention": yarn, "sliding_attention": {"rope_type": "default"}}
    assert ropes(rope_parameters=layers) == [("yarn", 4.0, 32), ("default", 1.0, None)]


def test_fields_that_the_file_lacks_are_those_of_transformers() -> None:
    config = config_of(model_type="qwen3", hidden_size=64, num_attention_heads=4)
    assert (config.layers, config.head_dim, config.positions) == (32, 128, 32768)
    assert config_of(model_type="gpt2", hidden_size=64, n_head=4).head_dim == 16
    assert config_of(model_type="gpt2", n_embd=64, num_attention_heads=4).head_dim == 16


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
