"""GGUF layout of a Hugging Face Llama: tensor names, metadata, and the row order of queries and keys.

RoPE in llama.cpp rotates neighboring numbers of a head, 0 with 1, 2 with 3, ... In Hugging Face it rotates
the two halves, 0 with H/2. The rows of each head of the query and key weights are therefore interleaved. This
leaves attention scores unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",  # absent with tied embeddings
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


def gguf_name(name: str) -> str:
    """Return the GGUF name of a parameter.

    Args:
        name: Its Hugging Face name, such as `model.layers.3.mlp.up_proj.weight`.

    Returns:
        Its GGUF name, such as `blk.3.ffn_up.weight`.

    Raises:
        KeyError: A Llama has no such parameter.
    """
    if name in OUTSIDE:
        return OUTSIDE[name]
    _, _, layer, *part, weight = name.split(".")
    return f"blk.{layer}.{LAYER['.'.join(part)]}.{weight}"


def interleave_rope_rows(weight: np.ndarray, heads: int) -> np.ndarray:
    """Interleave the two halves of each head's rows.

    Args:
        weight: The weight of queries or keys [N * H, D].
        heads: N.

    Returns:
        The rows of each head in the order 0, H/2, 1, H/2 + 1, ...: [N * H, D].
    """
    halves = weight.reshape(heads, 2, -1, weight.shape[-1])  # [N, 2, H/2, D]
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)


def gguf_weight(name: str, weight: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
    """Return a parameter in the layout of GGUF.

    Args:
        name: Its Hugging Face name.
        weight: Its numbers.
        config: The content of `config.json`.

    Returns:
        The numbers in GGUF's order.
    """
    if name.endswith("q_proj.weight"):
        return interleave_rope_rows(weight, config["num_attention_heads"])
    if name.endswith("k_proj.weight"):
        return interleave_rope_rows(weight, config["num_key_value_heads"])
    return weight


def metadata(config: Mapping[str, Any]) -> dict[str, int | float]:
    """Return the metadata that describes the model's shape to llama.cpp.

    Args:
        config: The content of `config.json`.

    Returns:
        Values by GGUF key: int for uint32, float for float32.
    """
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
