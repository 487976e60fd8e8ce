"""transformers' source says which models there are, and what a configuration's defaults and names are."""

from __future__ import annotations

from typing import Any

import pytest

from export.architectures import causal_models, declaration, is_known, tasks_of


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "mistral", "gemma3_text"])
def test_causal_models(model_type: str) -> None:
    assert model_type in causal_models()
    assert is_known(model_type)


@pytest.mark.parametrize(
    ("model_type", "tasks"),
    [
        ("t5", {"encoder-decoder"}),
        ("whisper", {"encoder-decoder", "audio"}),
        ("resnet", {"vision"}),
        ("bert", {"encoder"}),
        ("llava", {"multimodal"}),
        ("llama", set()),
        ("no-such-type", set()),
    ],
)
def test_tasks(model_type: str, tasks: set[str]) -> None:
    assert tasks_of(model_type) == tasks
    assert is_known(model_type) == (model_type != "no-such-type")


@pytest.mark.parametrize(
    ("model_type", "name", "value"),
    [
        ("mistral", "sliding_window", 4096),
        ("mistral", "max_position_embeddings", 131072),  # a product in the source
        ("qwen3", "head_dim", 128),
        ("gemma3_text", "num_key_value_heads", 4),  # in the file of gemma3
        ("opt", "word_embed_proj_dim", None),
    ],
)
def test_defaults(model_type: str, name: str, value: Any) -> None:
    assert declaration(model_type).defaults[name] == value


def test_aliases() -> None:
    assert declaration("gpt2").aliases["num_hidden_layers"] == "n_layer"
    assert declaration("mpt").aliases["hidden_size"] == "d_model"
    assert declaration("llama").aliases == {}


def test_rotation() -> None:
    assert (declaration("glm").rotated_part, declaration("glm").interleaved_rotation) == (0.5, True)
    assert (declaration("gpt_neox").rotated_part, declaration("llama").rotated_part) == (0.25, None)
    assert not declaration("llama").interleaved_rotation


def test_an_unknown_type_declares_nothing() -> None:
    assert not declaration("../llama").defaults
    assert not declaration("").defaults
