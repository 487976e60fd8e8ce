"""What a plan says about a model: only what is true of it."""

from __future__ import annotations

from typing import Any

import pytest

from export.config import CheckpointConfig
from export.model_traits import attention_traits, targets, traits
from tests.checkpoints import GROUPED

LLAMA = [
    *("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "lm_head.weight"),
    *("model.layers.0.input_layernorm.weight", "model.layers.0.mlp.gate_proj.weight", "model.norm.weight"),
]


def config_of(model_type: str, **fields: Any) -> CheckpointConfig:
    return CheckpointConfig(
        {"model_type": model_type, **GROUPED, "tie_word_embeddings": False, **fields}, "folder"
    )


def test_a_llama() -> None:
    config = config_of("llama")
    assert traits(config, LLAMA) == [
        "grouped-query attention (6 query heads of 10 over 2)",
        "rotary positions",
        "RMSNorm",
        "gated silu activation",
    ]
    assert attention_traits(config, LLAMA) == []
    assert "Circle's ATTENTION" in targets(config, LLAMA)[0]


@pytest.mark.parametrize(
    ("model_type", "fields", "tensors", "phrase"),
    [
        ("llama", {"num_key_value_heads": 6}, [], "multi-head attention (6 heads of 10)"),
        ("gpt_bigcode", {}, [], "multi-query attention (6 query heads of 10)"),
        ("qwen2", {}, ["model.layers.0.self_attn.q_proj.bias"], "biases of queries, keys, values"),
        ("gpt2", {}, ["h.0.attn.c_attn.bias"], "biases of queries, keys, values"),
        ("qwen3", {}, ["model.layers.0.self_attn.q_norm.weight"], "norms of queries and keys"),
        ("gemma2", {"attn_logit_softcapping": 50.0}, [], "scores capped at 50"),
        ("gemma2", {"query_pre_attn_scalar": 4}, [], "scores scaled by 0.5"),
        ("mistral", {"sliding_window": 16}, [], "a window of 16 tokens in 3 layers"),
        ("gemma2", {"sliding_window": 16}, [], "a window of 16 tokens in layers 0, 2"),
        ("gemma2", {"sliding_window": 16}, [], "all tokens in layer 1"),
        (
            "gemma3_text",
            {"num_hidden_layers": 16, "sliding_window": 16},
            [],
            "a window of 16 tokens in layers 0-4, 6-10, 12-15",
        ),
        ("gemma3_text", {"num_hidden_layers": 16}, [], "all tokens in layers 5, 11"),
        (
            "gemma2",
            {"num_hidden_layers": 42},
            [],
            "a window of 4,096 tokens in layers 0, 2, 4, 6, 8, 10, and 15 more",
        ),
        ("llama4_text", {"num_hidden_layers": 4}, [], "chunks of 8,192 tokens in layers 0-2"),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 2}, [], "all tokens in layers 0-1"),
        ("bloom", {}, [], "ALiBi positions"),
        ("falcon", {"alibi": True}, [], "ALiBi positions"),
        ("gpt2", {"max_position_embeddings": 32}, [], "learned positions (32)"),
        ("glm", {}, [], "rotary positions in 0.5 of each head of neighboring elements"),
        ("phi3", {"partial_rotary_factor": 0.75}, [], "rotary positions in 0.75 of each head"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 4}}, [], "rotary positions (linear by 4)"),
        ("smollm3", {"no_rope_layers": [1, 0, 1]}, [], "1 layer without positions"),
        ("phi", {}, ["model.layers.0.input_layernorm.bias"], "LayerNorm"),
        ("phi", {}, [], "attention and MLP in parallel"),
        ("gemma2", {"final_logit_softcapping": 30.0}, [], "logits capped at 30"),
        ("llama", {"tie_word_embeddings": True}, [], "tied embeddings"),
        ("llama", {}, ["model.embed_tokens.weight"], "tied embeddings"),
    ],
)
def test_traits(model_type: str, fields: dict[str, Any], tensors: list[str], phrase: str) -> None:
    assert phrase in traits(config_of(model_type, **fields), tensors)


@pytest.mark.parametrize(
    ("model_type", "fields", "tensors", "trait"),
    [
        ("qwen2", {}, ["model.layers.0.self_attn.q_proj.bias"], "biases"),
        ("qwen3", {}, ["model.layers.0.self_attn.k_norm.weight"], "norms of queries and keys"),
        ("gemma2", {}, [], "a cap of scores"),
        ("granite", {"attention_multiplier": 0.2}, [], "another scale"),
        ("bloom", {}, [], "ALiBi"),
        ("gpt2", {}, [], "no rotation"),
        ("olmo", {"clip_qkv": 2.0}, [], "clipping of queries, keys and values"),
        ("phi", {}, [], "partial rotation"),
        ("cohere", {}, [], "interleaved rotation"),
        ("ministral3", {"rope_parameters": {"llama_4_scaling_beta": 0.1}}, [], "queries scaled by position"),
        ("diffllama", {}, [], "a difference of two attentions"),
    ],
)
def test_what_circle_attention_has_no_operand_for(
    model_type: str, fields: dict[str, Any], tensors: list[str], trait: str
) -> None:
    config = config_of(model_type, **fields)
    assert trait in attention_traits(config, tensors)
    assert (
        f"o2o.attention (ATTENTION has no operand for {', '.join(attention_traits(config, tensors))})"
        in (targets(config, tensors)[0])
    )


def test_a_context_beyond_the_window_is_not_for_attention() -> None:
    config = config_of("mistral", sliding_window=16)
    assert attention_traits(config, LLAMA, 16) == []
    assert attention_traits(config, LLAMA, 17) == ["a window"]
    assert "o2o.attention (ATTENTION has no operand for a window)" in targets(config, LLAMA, 17)[0]
