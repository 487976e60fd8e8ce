"""The families, and a tiny configuration of each layout that a family has.

Sizes are odd on purpose: D = 48, but N * H = 60; V = 131; 6 query heads over 2 key/value heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from export.config import CheckpointConfig

CONTEXT = 100
"""S, tokens of context of each package: no multiple of a prefill's length."""
POSITIONS = 128
PROMPTS = (1, 5, 33, 63, 64, 65, 99)
"""P, lengths of prompts: around the edges of the prefill and of the buckets, and nearly the whole context."""
BUCKETS = [32, 64]
"""Capacities of LiteRT's additional decode graphs: each text crosses the edges of these."""
SHORT = 8
"""Tokens of a prefill and of a bucket that are shorter than `WINDOW`."""

PLAIN: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Every head has its own keys and values; H = D / N."""
GROUPED = PLAIN | {"num_key_value_heads": 2}
WIDE = GROUPED | {"head_dim": 10}
"""Head sizes that do not follow from D."""
TIED = {"tie_word_embeddings": True}
UNTIED = {"tie_word_embeddings": False}
GPT: dict[str, Any] = {
    "vocab_size": 131,
    "n_embd": 48,
    "n_layer": 2,
    "n_head": 6,
    "n_positions": POSITIONS,
}

GPT_NEO: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 48,
    "num_layers": 2,
    "num_heads": 6,
    "max_position_embeddings": POSITIONS,
    "attention_types": [[["global", "local"], 1]],
}


def rope(kind: str, **fields: Any) -> dict[str, Any]:
    """Return the configuration of rotary position embeddings.

    Args:
        kind: The `rope_type`.
        **fields: Its parameters.

    Returns:
        Fields of config.json.
    """
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, **fields}}


LLAMA3 = rope(
    "llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
WINDOW = {"sliding_window": 13}
"""Contexts hold more than seven windows. No multiple of a prefill's length, or of a bucket."""
ALTERNATING = {
    "num_hidden_layers": 3,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=32)

XGLM: dict[str, Any] = {
    "vocab_size": 131,
    "d_model": 48,
    "ffn_dim": 72,
    "num_layers": 2,
    "attention_heads": 6,
    "max_position_embeddings": POSITIONS,
}
GEMMA3N: dict[str, Any] = ALTERNATING | {
    "intermediate_size": [72, 72, 72],
    "num_kv_shared_layers": 0,
    "vocab_size_per_layer_input": 131,
    "hidden_size_per_layer_input": 8,
    "laurel_rank": 8,
    "activation_sparsity_pattern": [0.95, 0.0, 0.0],
}


def longrope(pairs: int, original: int, **fields: Any) -> dict[str, Any]:
    """Return the configuration of LongRoPE.

    Args:
        pairs: The number of pairs of elements that are rotated.
        original: Positions that short factors are for.
        **fields: Other parameters.

    Returns:
        Fields of config.json.
    """
    factors = {
        "short_factor": [1.0 + 0.1 * i for i in range(pairs)],
        "long_factor": [2.0 + i for i in range(pairs)],
    }
    parameters = rope("longrope", original_max_position_embeddings=original, **factors, **fields)
    return parameters | {"original_max_position_embeddings": original}


@dataclass(frozen=True)
class Case:
    """One configuration.

    Attributes:
        name: Its name in the table.
        model_type: The `model_type` of config.json.
        fields: Its other fields.
        ci: Whether CI checks it.
        attentions: The number of attentions of a layer.
    """

    name: str
    model_type: str
    fields: Mapping[str, Any]
    ci: bool = False
    attentions: int = 1

    @property
    def window(self) -> int | None:
        """The window of some layers, if the context is longer."""
        window = CheckpointConfig({"model_type": self.model_type, **self.fields}, self.name).sliding_window
        return window if window is not None and window < CONTEXT else None

    @property
    def prefill_lengths(self) -> list[int] | None:
        """T of each prefill: shorter and longer than the window; None for the default."""
        return None if self.window is None else [SHORT, 64]

    @property
    def buckets(self) -> list[int]:
        """Capacities of LiteRT's additional decode graphs: shorter and longer than the window."""
        return BUCKETS if self.window is None else [SHORT, *BUCKETS]

    @property
    def steps(self) -> int:
        """The largest number of tokens that follow a prompt."""
        return 40 if self.window is None else 60

    @property
    def prompts(self) -> list[int]:
        """P, lengths of prompts: also around the edges of the first windows."""
        edges = range(self.window, 4 * self.window, self.window) if self.window else ()
        return sorted({*PROMPTS, *(edge + step for edge in edges for step in (-1, 0, 1))})


CASES = (
    Case("llama 2", "llama", PLAIN | UNTIED),
    Case("llama 3, smollm 1-2", "llama", WIDE | TIED | LLAMA3, ci=True),
    Case("llama, linear", "llama", WIDE | UNTIED | rope("linear", factor=2.0)),
    Case("llama, dynamic", "llama", WIDE | TIED | rope("dynamic", factor=2.0)),
    Case(
        "llama, dynamic beyond its positions",
        "llama",
        WIDE | TIED | rope("dynamic", factor=2.0) | {"max_position_embeddings": 64},
    ),
    Case(
        "llama, yarn and biases", "llama", WIDE | UNTIED | YARN | {"attention_bias": True, "mlp_bias": True}
    ),
    Case("smollm3", "smollm3", GROUPED | TIED | {"no_rope_layers": [1, 0]}),
    Case("gemma", "gemma", WIDE | TIED | {"num_key_value_heads": 1}, ci=True),
    Case(
        "gemma2", "gemma2", WIDE | TIED | {"query_pre_attn_scalar": 7, "attn_logit_softcapping": 5.0}, ci=True
    ),
    Case("gemma2, window", "gemma2", WIDE | TIED | WINDOW | ALTERNATING | {"attn_logit_softcapping": 5.0}),
    Case("gemma3, window", "gemma3_text", WIDE | TIED | WINDOW | ALTERNATING, ci=True),
    Case("gemma3", "gemma3_text", WIDE | TIED | {"query_pre_attn_scalar": 7, "sliding_window": CONTEXT}),
    Case("phi-1.5, phi-2", "phi", PLAIN | UNTIED | {"partial_rotary_factor": 0.5}, ci=True),
    Case(
        "phi, grouped-query", "phi", GROUPED | UNTIED | {"qk_layernorm": True, "partial_rotary_factor": 0.5}
    ),
    Case("phi3", "phi3", GROUPED | UNTIED | {"sliding_window": None}),
    Case("phi3, window", "phi3", GROUPED | UNTIED | WINDOW),
    Case("phi3, longrope, short", "phi3", GROUPED | UNTIED | longrope(4, original=CONTEXT)),
    Case("phi3.5, longrope, long", "phi3", GROUPED | UNTIED | longrope(4, original=32)),
    Case(
        "phi4-mini, longrope",
        "phi3",
        GROUPED | TIED | longrope(3, original=32, partial_rotary_factor=0.75),
    ),
    Case("phi4-mini", "phi3", GROUPED | TIED | {"partial_rotary_factor": 0.5}),
    Case("qwen2, qwen2.5", "qwen2", WIDE | TIED, ci=True),
    Case("qwen2, untied", "qwen2", PLAIN | UNTIED | {"num_key_value_heads": 6}),
    Case(
        "qwen2, window",
        "qwen2",
        WIDE | TIED | WINDOW | {"use_sliding_window": True, "max_window_layers": 1},
    ),
    Case("qwen3", "qwen3", WIDE | UNTIED, ci=True),
    Case("mistral", "mistral", WIDE | UNTIED | {"sliding_window": None}),
    Case("mistral, window", "mistral", WIDE | UNTIED | WINDOW, ci=True),
    Case("ministral, window", "ministral", WIDE | TIED | WINDOW),
    Case("ministral", "ministral", WIDE | TIED | {"sliding_window": CONTEXT}),
    Case("olmo", "olmo", GROUPED | TIED | {"clip_qkv": 2.0}),
    Case("olmo2", "olmo2", GROUPED | UNTIED),
    Case("olmo3", "olmo3", GROUPED | UNTIED | {"sliding_window": CONTEXT}),
    Case("olmo3, window", "olmo3", GROUPED | UNTIED | WINDOW | ALTERNATING),
    Case("stablelm", "stablelm", GROUPED | UNTIED | {"use_qkv_bias": True, "partial_rotary_factor": 0.25}),
    Case(
        "stablelm 2",
        "stablelm",
        PLAIN
        | TIED
        | {
            "num_key_value_heads": 6,
            "qk_layernorm": True,
            "use_parallel_residual": True,
            "partial_rotary_factor": 0.5,
        },
    ),
    Case("gpt_neox", "gpt_neox", PLAIN | UNTIED | {"rotary_pct": 0.25}, ci=True),
    Case("gpt_neox, sequential", "gpt_neox", PLAIN | TIED | {"use_parallel_residual": False}),
    Case("gpt2", "gpt2", GPT, ci=True),
    Case("gpt2, scaled by layer", "gpt2", GPT | UNTIED | {"scale_attn_by_inverse_layer_idx": True}),
    Case("gpt_neo", "gpt_neo", GPT_NEO | {"window_size": CONTEXT}, ci=True),
    Case("gpt_neo, window", "gpt_neo", GPT_NEO | {"window_size": 13}),
    Case("gptj", "gptj", GPT | {"rotary_dim": 4}),
    Case("gptj, all rotated", "gptj", GPT | TIED | {"rotary_dim": 8}),
    Case("opt", "opt", PLAIN | {"ffn_dim": 72, "word_embed_proj_dim": 48}, ci=True),
    Case(
        "opt-350m",
        "opt",
        PLAIN | {"ffn_dim": 72, "word_embed_proj_dim": 40, "do_layer_norm_before": False},
    ),
    Case("falcon-7b", "falcon", PLAIN | {"multi_query": True, "parallel_attn": True}, ci=True),
    Case("falcon-40b", "falcon", PLAIN | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    Case(
        "falcon-rw",
        "falcon",
        PLAIN | UNTIED | {"multi_query": False, "parallel_attn": False, "alibi": True, "bias": True},
    ),
    Case("bloom", "bloom", {"vocab_size": 131, "hidden_size": 48, "n_layer": 2, "n_head": 6}, ci=True),
    Case(
        "mpt",
        "mpt",
        {"vocab_size": 131, "d_model": 48, "n_layers": 2, "n_heads": 6, "max_seq_len": POSITIONS},
    ),
    Case(
        "granite",
        "granite",
        GROUPED
        | TIED
        | {"attention_multiplier": 0.2, "embedding_multiplier": 3.0, "residual_multiplier": 0.5},
    ),
    Case("starcoder2", "starcoder2", GROUPED | TIED),
    Case("starcoder2, window", "starcoder2", GROUPED | TIED | WINDOW),
    Case("cohere", "cohere", GROUPED | TIED | {"use_qk_norm": True}),
    Case("cohere2", "cohere2", WIDE | TIED | {"sliding_window": CONTEXT}),
    Case("cohere2, window", "cohere2", WIDE | TIED | WINDOW | ALTERNATING),
    Case("glm", "glm", WIDE | UNTIED | {"attention_bias": True}),
    Case("glm4", "glm4", WIDE | UNTIED | {"attention_bias": True}),
    Case("exaone4", "exaone4", GROUPED | UNTIED | {"sliding_window": CONTEXT}),
    Case("exaone4, window", "exaone4", GROUPED | UNTIED | WINDOW | ALTERNATING),
    Case("helium", "helium", GROUPED | UNTIED | {"head_dim": 8}),
    Case("nemotron", "nemotron", WIDE | UNTIED, ci=True),
    Case("persimmon", "persimmon", PLAIN | UNTIED),
    Case("codegen", "codegen", GPT | {"n_head": 4, "rotary_dim": 4}),
    Case("gpt_bigcode", "gpt_bigcode", GPT),
    Case("gpt_bigcode, multi-head", "gpt_bigcode", GPT | {"multi_query": False}),
    Case("seed_oss", "seed_oss", WIDE | UNTIED | {"attention_bias": True, "attention_out_bias": True}),
    Case("arcee", "arcee", WIDE | UNTIED),
    Case("apertus", "apertus", WIDE | UNTIED),
    Case(
        "ministral3",
        "ministral3",
        WIDE
        | UNTIED
        | rope(
            "yarn",
            factor=4.0,
            original_max_position_embeddings=32,
            mscale=1.0,
            mscale_all_dim=1.0,
            llama_4_scaling_beta=0.1,
        ),
    ),
    Case("xglm", "xglm", XGLM),
    Case("diffllama", "diffllama", WIDE | UNTIED, attentions=2),
    Case(
        "granite 4, no experts",
        "granitemoehybrid",
        GROUPED
        | TIED
        | {"layer_types": ["attention"] * 2, "num_local_experts": 0, "shared_intermediate_size": 72}
        | {"mamba_n_heads": 12, "mamba_d_head": 8}
        | {"position_embedding_type": "rope", "attention_multiplier": 0.2, "logits_scaling": 2.0},
    ),
    Case("gemma3n, own keys, window", "gemma3n_text", WIDE | TIED | WINDOW | GEMMA3N),
)
"""All cases, in the order of the table."""
