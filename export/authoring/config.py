"""The configuration of a model of one's own, under the names that `config.json` of transformers has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The sizes of a decoder-only transformer. A model may subclass it for fields of its own.

    A number that differs from layer to layer is a sequence with one number for each layer.

    Attributes:
        vocab_size: V.
        hidden_size: D.
        intermediate_size: Width of the feed-forward layers.
        num_hidden_layers: Layers.
        num_attention_heads: N.
        num_key_value_heads: K.
        head_dim: H.
        max_position_embeddings: The longest context in tokens.
        rms_norm_eps: Epsilon of the norms.
        rope_theta: Base of the rotary embeddings.
        rope_interleaved: Whether neighboring elements of a head are rotated together, not its halves.
        rotary_dim: How many elements of each head are rotated; None for all.
        normalize_queries: Whether queries and keys have norms of their own.
        attention_bias: Whether query, key and value have biases.
        sliding_window: How many keys a query sees at most; None for all. 0 in a sequence is a layer without.
        tie_word_embeddings: Whether the logits are computed with the embedding.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int | Sequence[int]
    num_hidden_layers: int
    num_attention_heads: int | Sequence[int]
    num_key_value_heads: int | Sequence[int]
    head_dim: int | Sequence[int]
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    rope_interleaved: bool = False
    rotary_dim: int | None = None
    normalize_queries: bool = False
    attention_bias: bool = False
    sliding_window: int | Sequence[int] | None = None
    tie_word_embeddings: bool = False

    def of_layer(self, name: str, layer: int) -> int:
        """Return a number of one layer.

        Args:
            name: The field, such as `num_key_value_heads`.
            layer: The layer's number.

        Returns:
            The number; 0 for None.
        """
        value = getattr(self, name)
        return int((value[layer] if isinstance(value, Sequence) else value) or 0)
