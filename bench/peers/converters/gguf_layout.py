"""How GGUF holds a Llama of Hugging Face: names, metadata, and the rows of queries and keys.

llama.cpp turns neighbouring numbers of a head by rotary embeddings, 0 with 1, 2 with 3, ...; Hugging Face the
two halves, 0 with H/2. So the rows of each head of the query's and key's weights are interleaved; attention's
scores stay what they were.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",  # left out where the embedding's table is used again
}
LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def name_of(name: str) -> str:
    """That of a Hugging Face parameter in GGUF: `model.layers.3.mlp.up_proj.weight` is `blk.3.ffn_up.weight`.

    Raises KeyError for one that a Llama does not have.
    """
    if name in OUTSIDE:
        return OUTSIDE[name]
    _, _, layer, *part, weight = name.split(".")
    return f"blk.{layer}.{LAYER['.'.join(part)]}.{weight}"


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """[N * H, D], the rows of each head in the order 0, H/2, 1, H/2 + 1, ..."""
    halves = weight.reshape(heads, 2, -1, weight.shape[-1])  # [N, 2, H/2, D]
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)


def laid_out(name: str, weight: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
    """The parameter `name` as GGUF wants it."""
    if name.endswith("q_proj.weight"):
        return interleaved(weight, config["num_attention_heads"])
    if name.endswith("k_proj.weight"):
        return interleaved(weight, config["num_key_value_heads"])
    return weight


def metadata(config: Mapping[str, Any]) -> dict[str, int | float]:
    """What llama.cpp must know of the shape, by its keys; whole numbers are uint32, others float32."""
    return {
        "llama.context_length": config["max_position_embeddings"],
        "llama.embedding_length": config["hidden_size"],
        "llama.block_count": config["num_hidden_layers"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.attention.head_count": config["num_attention_heads"],
        "llama.attention.head_count_kv": config["num_key_value_heads"],
        "llama.attention.key_length": config["head_dim"],
        "llama.attention.value_length": config["head_dim"],
        "llama.rope.dimension_count": config["head_dim"],
        "llama.rope.freq_base": float(config["rope_theta"]),
        "llama.attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "llama.vocab_size": config["vocab_size"],
    }
