"""OpenELM (Mehta et al., 2024): heads and feed-forward widths grow from layer to layer.

transformers does not have it. Apple's checkpoints of 270M, 450M, 1.1B and 3B parameters hold code, which
never runs here. Their config.json and their names of tensors are read as they are. The tokenizer is that of
Llama 2: give it with `--tokenizer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from export.authoring.building_blocks import Decoder
from export.authoring.config import ModelConfig
from export.authoring.tensor_names import TensorNames, rows
from o2o.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class OpenELMConfig(ModelConfig):
    """The configuration of an OpenELM. Each layer has its own number of heads, and its own width."""

    num_attention_heads: list[int]
    num_key_value_heads: list[int]
    intermediate_size: list[int]
    head_dim: int


def get_model_config(fields: Mapping[str, Any]) -> OpenELMConfig:
    """Compute the sizes of all layers.

    Args:
        fields: The fields of Apple's config.json.

    Returns:
        The configuration.

    Raises:
        ModelError: The fields are those of a variant that was never published.
    """
    layers, D, H = fields["num_transformer_layers"], fields["model_dim"], fields["head_dim"]
    groups = fields.get("num_gqa_groups") or 1
    for name, usual in (
        ("ffn_with_glu", True),
        ("activation_fn_name", "swish"),
        ("normalization_layer_name", "rms_norm"),
    ):
        if fields.get(name, usual) != usual:
            raise ModelError(f"this OpenELM has {name} {fields[name]!r}, which no published one has")
    heads = fields.get("num_query_heads")
    if not isinstance(heads, list):
        step = H * (fields.get("num_gqa_groups") or 2)
        multipliers = _by_layer(fields.get("qkv_multipliers") or 1.0, layers)
        heads = [_divisible(D * multiplier, step) // H for multiplier in multipliers]
    key_value_heads = fields.get("num_kv_heads")
    if not isinstance(key_value_heads, list):
        key_value_heads = [count // groups for count in heads]
    widths = _by_layer(fields["ffn_multipliers"], layers)
    return OpenELMConfig(
        vocab_size=fields["vocab_size"],
        hidden_size=D,
        intermediate_size=[_divisible(D * width, fields["ffn_dim_divisor"]) for width in widths],
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=H,
        max_position_embeddings=fields["max_context_length"],
        rms_norm_eps=1e-6,
        rope_theta=float(fields["rope_freq_constant"]),
        normalize_queries=fields["normalize_qk_projections"],
        tie_word_embeddings=fields["share_input_output_layers"],
    )


build_model = Decoder


def tensor_names(config: OpenELMConfig) -> TensorNames:
    """Map Apple's names. Queries, keys and values are one projection, and so are gate and up.

    Args:
        config: The configuration.

    Returns:
        The table.
    """
    N = [heads * config.head_dim for heads in config.num_attention_heads]
    K = [heads * config.head_dim for heads in config.num_key_value_heads]
    width = config.intermediate_size
    layer, qkv = "transformer.layers.{layer}", "transformer.layers.{layer}.attn.qkv_proj.weight"
    gate_up = f"{layer}.ffn.proj_1.weight"
    attention, feed_forward = "layers.{layer}.attention", "layers.{layer}.feed_forward"
    return {
        "embedding.weight": "transformer.token_embeddings.weight",
        "layers.{layer}.attention_norm.weight": f"{layer}.attn_norm.weight",
        f"{attention}.q_proj.weight": rows(qkv, 0, lambda i: N[i]),
        f"{attention}.k_proj.weight": rows(qkv, lambda i: N[i], lambda i: N[i] + K[i]),
        f"{attention}.v_proj.weight": rows(qkv, lambda i: N[i] + K[i], lambda i: N[i] + 2 * K[i]),
        f"{attention}.q_norm.weight": f"{layer}.attn.q_norm.weight",
        f"{attention}.k_norm.weight": f"{layer}.attn.k_norm.weight",
        f"{attention}.o_proj.weight": f"{layer}.attn.out_proj.weight",
        "layers.{layer}.feed_forward_norm.weight": f"{layer}.ffn_norm.weight",
        f"{feed_forward}.gate_proj.weight": rows(gate_up, 0, lambda i: width[i]),
        f"{feed_forward}.up_proj.weight": rows(gate_up, lambda i: width[i], lambda i: 2 * width[i]),
        f"{feed_forward}.down_proj.weight": f"{layer}.ffn.proj_2.weight",
        "norm.weight": "transformer.norm.weight",
        "lm_head.weight": "lm_head.weight",
    }


def _by_layer(value: float | list[float], layers: int) -> list[float]:
    """One multiplier for each layer. Two are the first and the last, with steps rounded to hundredths."""
    if not isinstance(value, list):
        return [float(value)] * layers
    if len(value) == layers:
        return value
    return [round(float(item), 2) for item in np.linspace(value[0], value[-1], layers)]


def _divisible(value: float, divisor: int) -> int:
    """The nearest multiple of `divisor`, at least 0.9 times `value`."""
    nearest = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return nearest + divisor if nearest < 0.9 * value else nearest
