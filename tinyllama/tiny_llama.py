"""A checkpoint as a PyTorch module with the inputs and outputs of the converted files.

    from tinyllama import kv_cache as kv_utils, tiny_llama

    model = tiny_llama.build_model("DIR", kv_cache_max_len=1024, use_flash_attention=True)
    kv_cache = kv_utils.KVCache.from_model_config(model.config)
    output = model(tokens, torch.arange(tokens.shape[1]), kv_cache)      # {"logits", "kv_cache"}

This is the exported graph (`StaticCacheModule`), with the checkpoint's weights.
"""

from __future__ import annotations

import os
from itertools import pairwise
from typing import Any

import torch

from export.attention import blocks_of
from export.hub import resolve
from export.model import LanguageModel
from export.modules import StaticCacheModule
from export.options import FLASH, GROUPED
from export.parameter_matching import match_parameters
from o2o.errors import UsageError
from o2o.operators.core_attention import FlashBlockSizes
from o2o.weights.checkpoint import open_checkpoint
from tinyllama.kv_cache import KVCache, KVCacheEntry
from tinyllama.model_config import ModelConfig

KV_CACHE_MAX_LEN = 1024


class TinyLlama(torch.nn.Module):
    """Call it with tokens int [1, T], input_pos int [T] and a `KVCache` of S rows: it gives
    {"logits": float32 [1, T, V], "kv_cache": KVCache}, the caches with the T new rows written at input_pos.

    Positions are consecutive, and the first is at most the number of rows that are filled. Without positions
    the tokens begin a text. Without a cache, an empty one is used.
    """

    def __init__(
        self, model: LanguageModel, config: ModelConfig, blocks: FlashBlockSizes | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.transformer: torch.nn.Module = model.module  # whose parameters are this module's
        self._model = model
        self._blocks = blocks

    def forward(
        self,
        tokens: torch.Tensor,
        input_pos: torch.Tensor | None = None,
        kv_cache: KVCache | None = None,
    ) -> dict[str, Any]:
        """Compute logits and updated caches.

        Args:
            tokens: int [1, T].
            input_pos: int [T], consecutive positions; None for a new text.
            kv_cache: The caches; None for empty ones.

        Returns:
            {"logits": float32 [1, T, V], "kv_cache": KVCache}.

        Raises:
            UsageError: The arguments do not fit together.
        """
        if kv_cache is None:
            kv_cache = KVCache.from_model_config(self.config)
        kv_cache.check(self.config)
        if tokens.dim() != 2 or tokens.shape[0] != 1 or not tokens.numel():
            raise UsageError(f"tokens are {list(tokens.shape)}: give one text, [1, T]")
        count = tokens.shape[1]
        if not 0 <= int(tokens.min()) <= int(tokens.max()) < self.config.vocab_size:
            raise UsageError(f"tokens must be ids from 0 to {self.config.vocab_size - 1}")
        if input_pos is None:
            input_pos = torch.arange(count)
        first = first_position(input_pos, count, kv_cache)
        graph = StaticCacheModule(self._model, "forward", count, self.config.kv_cache_max_len)
        parameters = dict(self.transformer.named_parameters())
        weights = [parameters[name] for name in self._model.parameters]
        past = [tensor.transpose(1, 2) for tensor in kv_cache]
        with blocks_of(self._blocks):
            logits, *caches = graph(tokens.long(), torch.tensor([first]), past, weights)
        rows = [cache.transpose(1, 2) for cache in caches]
        entries = tuple(KVCacheEntry(k, v) for k, v in zip(rows[::2], rows[1::2], strict=True))
        return {"logits": logits, "kv_cache": KVCache(entries, max(kv_cache.filled, first + count))}


def first_position(input_pos: torch.Tensor, count: int, kv_cache: KVCache) -> int:
    """Return the position of the first token.

    Args:
        input_pos: int [T].
        count: T.
        kv_cache: The caches.

    Returns:
        The position.

    Raises:
        UsageError: The positions are not consecutive, or do not continue the text.
    """
    positions = input_pos.tolist()
    if input_pos.dim() != 1 or len(positions) != count:
        raise UsageError(f"input_pos is {list(input_pos.shape)} for {count} tokens: give one position each")
    for number, (before, after) in enumerate(pairwise(positions), 1):
        if after != before + 1:
            padded = ": padding tokens need consecutive positions too (torch.arange), not zeros"
            raise UsageError(
                f"input_pos must increase by one, but input_pos[{number}] is {after} after {before}"
                f"{padded if after == 0 else ''}"
            )
    first, capacity = positions[0], kv_cache.caches[0].k_cache.shape[1]
    if not 0 <= first <= kv_cache.filled:
        raise UsageError(
            f"input_pos begins at {first}, but the KV cache holds {kv_cache.filled} tokens: feed all "
            f"earlier tokens, and pass the returned kv_cache to the next call"
        )
    if first + count > capacity:
        raise UsageError(
            f"position {first + count - 1} is beyond the KV cache of {capacity}: shorten the text, or build "
            "the model with a larger kv_cache_max_len"
        )
    return first


def get_model_config(
    checkpoint_path: str | os.PathLike[str],
    kv_cache_max_len: int = KV_CACHE_MAX_LEN,
    use_flash_attention: bool = False,
) -> ModelConfig:
    """Return the sizes of a checkpoint's model, without its weights.

    Args:
        checkpoint_path: A folder, or a hub id.
        kv_cache_max_len: S, rows of the KV caches.
        use_flash_attention: Compute attention in blocks.

    Returns:
        The sizes.
    """
    return config_of(LanguageModel.read(resolve(checkpoint_path)), kv_cache_max_len, use_flash_attention)


def build_model(
    checkpoint_path: str | os.PathLike[str],
    kv_cache_max_len: int = KV_CACHE_MAX_LEN,
    use_flash_attention: bool = False,
    blocks: FlashBlockSizes | None = None,
) -> TinyLlama:
    """Build the model of a checkpoint, with float32 weights.

    Args:
        checkpoint_path: A folder, or a hub id.
        kv_cache_max_len: S, rows of the KV caches.
        use_flash_attention: Compute attention in blocks.
        blocks: Block sizes; None for sizes by the number of tokens.

    Returns:
        The model.

    Raises:
        ModelError: The checkpoint is incomplete or unsupported.
        UsageError: The model cannot see S tokens.
    """
    directory = resolve(checkpoint_path)
    checkpoint = open_checkpoint(directory)
    model = LanguageModel.read(directory, FLASH if use_flash_attention else GROUPED, kv_cache_max_len)
    config = config_of(model, kv_cache_max_len, use_flash_attention)
    weights = {
        name: torch.from_numpy(stored.read_float32())
        for name, stored in match_parameters(model, checkpoint).items()
    }
    aliases = {alias: weights[name] for name, others in model.aliases.items() for alias in others}
    model.module.load_state_dict(weights | aliases, assign=True)
    model.module.tie_weights()
    return TinyLlama(model, config, blocks)


def config_of(model: LanguageModel, kv_cache_max_len: int, use_flash_attention: bool) -> ModelConfig:
    """Return the sizes of a model.

    Args:
        model: The model.
        kv_cache_max_len: S, rows of the KV caches.
        use_flash_attention: Whether attention is computed in blocks.

    Returns:
        The sizes.

    Raises:
        UsageError: The model cannot see S tokens.
    """
    model.check_length(kv_cache_max_len)
    text = model.config.get_text_config(decoder=True)
    return ModelConfig(
        num_layers=model.layers,
        num_query_heads=model.query_heads,
        num_key_value_heads=max(K for K, _ in model.cache_shapes),
        head_dim=max(H for _, H in model.cache_shapes),
        embedding_dim=text.hidden_size,
        vocab_size=text.vocab_size,
        kv_cache_max_len=kv_cache_max_len,
        use_flash_attention=use_flash_attention,
        cache_heads=tuple(model.cache_shapes),
    )
