"""The key and value caches of a conversation, as `tinyllama.tiny_llama` and the converted files take them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from o2o.errors import UsageError
from tinyllama.model_config import ModelConfig


@dataclass(frozen=True)
class KVCacheEntry:
    """The caches of one layer: float32 [1, S, K, H] each, keys rotated."""

    k_cache: torch.Tensor
    v_cache: torch.Tensor


def update(
    cache: KVCacheEntry, input_pos: torch.Tensor, k_slice: torch.Tensor, v_slice: torch.Tensor
) -> KVCacheEntry:
    """Write new rows into a cache.

    Args:
        cache: The caches of one layer.
        input_pos: int [T], the rows.
        k_slice: Keys [1, T, K, H].
        v_slice: Values [1, T, K, H].

    Returns:
        The updated caches.
    """
    rows = input_pos.long()
    return KVCacheEntry(
        cache.k_cache.index_copy(1, rows, k_slice), cache.v_cache.index_copy(1, rows, v_slice)
    )


@dataclass(frozen=True)
class KVCache:
    """The caches of all layers. `filled`: how many rows have been written, from the first on."""

    caches: tuple[KVCacheEntry, ...]
    filled: int = 0

    @classmethod
    def from_model_config(cls, config: ModelConfig, dtype: torch.dtype = torch.float32) -> KVCache:
        """Make empty caches: zeros, as masked rows still take part in the computation.

        Args:
            config: The sizes of the model.
            dtype: The dtype of the caches.

        Returns:
            The caches.
        """
        caches = [torch.zeros(shape, dtype=dtype) for shape in _shapes(config)]
        return cls(tuple(map(KVCacheEntry, caches[::2], caches[1::2])))

    def __iter__(self) -> Iterator[torch.Tensor]:
        """k_0, v_0, k_1, v_1, ..."""
        for entry in self.caches:
            yield from (entry.k_cache, entry.v_cache)

    def check(self, config: ModelConfig) -> None:
        """Check that these are caches of a model.

        Args:
            config: The sizes of the model.

        Raises:
            UsageError: The number of layers, a shape or a dtype differs.
        """
        if len(self.caches) != config.num_layers:
            raise UsageError(
                f"KV caches of {len(self.caches)} layers for a model of {config.num_layers}: make them with "
                "KVCache.from_model_config(model.config)"
            )
        for number, (tensor, shape) in enumerate(zip(self, _shapes(config), strict=True)):
            if tuple(tensor.shape) != shape or tensor.dtype != torch.float32:
                raise UsageError(
                    f"kv_cache_{'kv'[number % 2]}_{number // 2} is {tensor.dtype} {list(tensor.shape)}, not "
                    f"float32 {list(shape)} ([1, capacity, key/value heads, head dimension]): make it with "
                    "KVCache.from_model_config(model.config)"
                )


def _shapes(config: ModelConfig) -> list[tuple[int, int, int, int]]:
    """The shape of each cache: key 0, value 0, key 1, ..."""
    return [(1, config.kv_cache_max_len, K, H) for K, H in config.cache_heads]
