"""The sizes of `tinyllama.tiny_llama`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelConfig:
    """The sizes of a model: K key/value heads of H, vocabulary V, capacity S of its caches.

    Attributes:
        num_layers: Layers.
        num_query_heads: N, the most of a layer.
        num_key_value_heads: K, the most of a layer.
        head_dim: H, the largest of a layer.
        embedding_dim: D.
        vocab_size: V.
        kv_cache_max_len: S.
        use_flash_attention: Whether attention is computed in blocks.
        cache_heads: (K, H) of each cache: key 0, value 0, key 1, ...
    """

    num_layers: int
    num_query_heads: int
    num_key_value_heads: int
    head_dim: int
    embedding_dim: int
    vocab_size: int
    kv_cache_max_len: int
    use_flash_attention: bool
    cache_heads: tuple[tuple[int, int], ...]
