"""Building blocks of decoder-only transformers.

A model of one's own may use all of them, some, or none: only the call of the model and of the cache is fixed.

    logits = model(input_ids, position_ids, mask, cache)
    keys, values = cache.update(keys, values, layer)

Token ids and positions are int64 [1, T]. The mask is float32 [1, 1, T, S] and is added to the scores: 0 where
a key is visible, else very negative. Logits are float32 [1, T, V]. The rotated keys and the values of the new
tokens are [1, K, T, H]. Attention sees those that `update` returns, [1, K, S, H].
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import nn

from export.attention import core_implementation
from export.authoring.config import ModelConfig
from o2o.operators.masks import LOWEST


class KVCache(Protocol):
    """The cache of keys and values that a model is called with."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the keys and values of new tokens.

        Args:
            key_states: Rotated keys [1, K, T, H].
            value_states: Values [1, K, T, H].
            layer_idx: The layer's number.

        Returns:
            The keys and values that attention sees, [1, K, S, H] each.
        """
        ...


class Positions(NamedTuple):
    """The positions of the tokens of a call, and their rotary embeddings, which all layers share.

    Attributes:
        ids: int64 [1, T].
        cos: float32 [1, 1, T, H]; both halves of a row are equal.
        sin: float32 [1, 1, T, H]; the same.
    """

    ids: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor

    @classmethod
    def of(cls, position_ids: torch.Tensor, dim: int, theta: float) -> Positions:
        """Compute rotary embeddings (Su et al., RoFormer, 2021).

        Args:
            position_ids: int64 [1, T].
            dim: How many elements of each head are rotated.
            theta: The base of the frequencies.

        Returns:
            The positions.
        """
        frequencies = theta ** -(torch.arange(0, dim, 2, dtype=torch.float32) / dim)
        angles = position_ids[:, None, :, None].to(torch.float32) * frequencies
        angles = torch.cat([angles, angles], -1)
        return cls(position_ids, angles.cos(), angles.sin())


def rotate(x: torch.Tensor, positions: Positions, interleaved: bool = False) -> torch.Tensor:
    """Rotate queries or keys by their positions.

    Args:
        x: [1, N, T, H]. Elements of a head beyond the size of the rotary embeddings stay as they are.
        positions: The positions of the T tokens.
        interleaved: Rotate neighboring elements together; else element i with element i + H / 2.

    Returns:
        [1, N, T, H].
    """
    cos, sin = positions.cos, positions.sin
    dim = cos.shape[-1]
    half = dim // 2
    if x.shape[-1] > dim:
        return torch.cat([rotate(x[..., :dim], positions, interleaved), x[..., dim:]], -1)
    if interleaved:
        cos, sin = cos[..., :half], sin[..., :half]
        pairs = x.unflatten(-1, (half, 2))
        a, b = pairs[..., 0], pairs[..., 1]
        return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    positions: Positions,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute attention; in an exported graph it is one operator, `o2o.attention`.

    Args:
        module: The attention layer, for messages.
        query: [1, N, T, H], rotated.
        key: [1, K, S, H], as the cache returns them.
        value: [1, K, S, H].
        mask: The mask of the model's call.
        positions: The positions of the queries.
        scale: The factor of the scores; None for H ** -0.5.
        window: How many keys a query sees at most; None or 0 for all.
        softcap: Scores become softcap * tanh(score / softcap); None or 0 for none.
        sinks: [N], one more logit of each head, which takes weight from the values; None for none.

    Returns:
        [1, T, N * H].
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if (core := core_implementation()) is not None:
        attended, _ = core(
            module,
            query,
            key,
            value,
            None,
            scaling=scale,
            sliding_window=window or None,
            softcap=softcap,
            s_aux=sinks,
        )
        return attended.flatten(2)
    groups = query.shape[1] // key.shape[1]
    key, value = _repeated(key, groups), _repeated(value, groups)
    scores = query @ key.transpose(2, 3) * scale
    if softcap:
        scores = softcap * (scores / softcap).tanh()
    if window:
        hidden = torch.arange(key.shape[2]) <= positions.ids[..., None] - window
        mask = torch.where(hidden[:, None], LOWEST, mask)
    scores = scores + mask
    if sinks is not None:
        scores = torch.cat([scores, sinks.reshape(1, -1, 1, 1).expand(*scores.shape[:-1], 1)], -1)
    weights = scores.softmax(-1)[..., : key.shape[2]]
    return (weights @ value).transpose(1, 2).flatten(2)


def _repeated(x: torch.Tensor, count: int) -> torch.Tensor:
    """[1, K, S, H] -> [1, K * count, S, H], each head `count` times."""
    if count == 1:
        return x
    B, K, S, H = x.shape
    return x[:, :, None].expand(B, K, count, S, H).reshape(B, K * count, S, H)


class Attention(nn.Module):
    """Grouped-query attention with rotary embeddings.

    Parameters: q_proj, k_proj, v_proj, o_proj; q_norm and k_norm with `normalize_queries`.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        """Make the layer.

        Args:
            config: The model's configuration.
            layer: The layer's number.
        """
        super().__init__()
        self.layer_idx = layer
        self.heads = config.of_layer("num_attention_heads", layer)
        self.key_value_heads = config.of_layer("num_key_value_heads", layer)
        self.head_dim = config.of_layer("head_dim", layer)
        self.window = config.of_layer("sliding_window", layer)
        self.interleaved = config.rope_interleaved
        D, bias = config.hidden_size, config.attention_bias
        self.q_proj = nn.Linear(D, self.heads * self.head_dim, bias=bias)
        self.k_proj = nn.Linear(D, self.key_value_heads * self.head_dim, bias=bias)
        self.v_proj = nn.Linear(D, self.key_value_heads * self.head_dim, bias=bias)
        self.o_proj = nn.Linear(self.heads * self.head_dim, D, bias=False)
        self.q_norm = self.k_norm = None
        if config.normalize_queries:
            self.q_norm = nn.RMSNorm(self.head_dim, config.rms_norm_eps)
            self.k_norm = nn.RMSNorm(self.head_dim, config.rms_norm_eps)

    def forward(
        self, x: torch.Tensor, positions: Positions, mask: torch.Tensor, cache: KVCache
    ) -> torch.Tensor:
        """Attend to all tokens up to each one.

        Args:
            x: [1, T, D].
            positions: The positions of the T tokens.
            mask: Additive float32 [1, 1, T, S].
            cache: Holds the keys and values of earlier tokens.

        Returns:
            [1, T, D].
        """
        query = self._heads(self.q_proj(x))
        key, value = self._heads(self.k_proj(x)), self._heads(self.v_proj(x))
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = (rotate(heads, positions, self.interleaved) for heads in (query, key))
        key, value = cache.update(key, value, self.layer_idx)
        return self.o_proj(attend(self, query, key, value, mask, positions, window=self.window))

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class GatedFeedForward(nn.Module):
    """SwiGLU (Shazeer, 2020). Parameters: gate_proj, up_proj, down_proj."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        """Make the layer.

        Args:
            config: The model's configuration.
            layer: The layer's number.
        """
        super().__init__()
        D, width = config.hidden_size, config.of_layer("intermediate_size", layer)
        self.gate_proj = nn.Linear(D, width, bias=False)
        self.up_proj = nn.Linear(D, width, bias=False)
        self.down_proj = nn.Linear(width, D, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the layer.

        Args:
            x: [1, T, D].

        Returns:
            [1, T, D].
        """
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class TransformerBlock(nn.Module):
    """Attention and a feed-forward layer, each behind a norm and with a residual connection."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        """Make the block.

        Args:
            config: The model's configuration.
            layer: The layer's number.
        """
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config, layer)
        self.feed_forward_norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.feed_forward = GatedFeedForward(config, layer)

    def forward(
        self, x: torch.Tensor, positions: Positions, mask: torch.Tensor, cache: KVCache
    ) -> torch.Tensor:
        """Compute the block.

        Args:
            x: [1, T, D].
            positions: The positions of the T tokens.
            mask: Additive float32 [1, 1, T, S].
            cache: Holds the keys and values of earlier tokens.

        Returns:
            [1, T, D].
        """
        x = x + self.attention(self.attention_norm(x), positions, mask, cache)
        return x + self.feed_forward(self.feed_forward_norm(x))


class Decoder(nn.Module):
    """A decoder-only transformer: token embedding, blocks, a norm, logits.

    Parameters: embedding, layers.{layer}.…, norm, and lm_head if embeddings are not tied.
    """

    def __init__(self, config: ModelConfig) -> None:
        """Make the model.

        Args:
            config: Its configuration.
        """
        super().__init__()
        self.config = config
        layers = range(config.num_hidden_layers)
        self.rotary_dims = [config.rotary_dim or config.of_layer("head_dim", layer) for layer in layers]
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(TransformerBlock(config, layer) for layer in layers)
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embedding.weight

    def forward(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, mask: torch.Tensor, cache: KVCache
    ) -> torch.Tensor:
        """Compute the logits of each token.

        Args:
            input_ids: int64 [1, T].
            position_ids: int64 [1, T].
            mask: Additive float32 [1, 1, T, S].
            cache: Holds the keys and values of earlier tokens.

        Returns:
            float32 [1, T, V].
        """
        theta = self.config.rope_theta
        positions = {dim: Positions.of(position_ids, dim, theta) for dim in dict.fromkeys(self.rotary_dims)}
        x = self.embedding(input_ids)
        for layer, dim in zip(self.layers, self.rotary_dims, strict=True):
            x = layer(x, positions[dim], mask, cache)
        logits: torch.Tensor = self.lm_head(self.norm(x))
        return logits
