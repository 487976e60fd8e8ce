"""The sizes of `tinyllama.tiny_llama`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelConfig:
    """The sizes of a model: K key/value heads of H, vocabulary V, capacity S of its caches."""

    num_layers: int
    num_query_heads: int
    num_key_value_heads: int
    head_dim: int
    embedding_dim: int
    vocab_size: int
    kv_cache_max_len: int
    use_flash_attention: bool
