"""Stand-ins for transformers' KV cache while a graph is traced.

transformers passes each layer's new rotated keys and values [B, K, T, H] to `update` and attends to what
`update` returns. So each class here decides what attention sees, and records what the graph returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache

from export.custom_ops import dynamic_update_slice
from o2o.errors import ModelError


class RecordingCache(Cache):
    """Attention sees the new keys and values alone, and they are recorded by layer. For prefill."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self._recorded: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def visible(
        self, layer: int, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the keys and values that attention sees.

        Args:
            layer: The layer's number.
            key: Its new keys [B, K, T, H].
            value: Its new values [B, K, T, H].

        Returns:
            Keys and values, [B, K, number of keys, H] each.
        """
        return key, value

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self._recorded[layer_idx] = self.visible(layer_idx, key_states, value_states)
        return self._recorded[layer_idx]

    def get_query_offset(self, layer_idx: int = 0) -> Any:
        """Return the position of the first token, for models that make their own mask.

        Args:
            layer_idx: The layer's number.

        Returns:
            An integer, or int64 [1].
        """
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Return which keys attention sees, for models that make their own mask.

        Args:
            query_length: T.
            layer_idx: The layer's number.

        Returns:
            The number of keys, and the position of the first.
        """
        return query_length, 0

    def __len__(self) -> int:
        """Number of layers that have used this cache."""
        return len(self._recorded)

    def flat(self) -> list[torch.Tensor]:
        """List the recorded tensors.

        Returns:
            key 0, value 0, key 1, value 1, ...
        """
        return [tensor for layer in sorted(self._recorded) for tensor in self._recorded[layer]]


class PastCache(RecordingCache):
    """A cache that holds the rows of earlier tokens. Base of both forms of decode."""

    def __init__(self, past: Sequence[torch.Tensor]) -> None:
        """Take the rows of earlier tokens.

        Args:
            past: key 0, value 0, key 1, value 1, ..., each [B, K, S, H].
        """
        super().__init__()
        self.past = past

    def past_of(
        self, layer: int, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the past of a layer.

        Args:
            layer: The layer's number.
            key: Its new keys.
            value: Its new values.

        Returns:
            Past keys and values [B, K, S, H].

        Raises:
            ModelError: The new rows have another number or size of heads.
        """
        past = self.past[2 * layer], self.past[2 * layer + 1]
        for noun, old, new in zip(("keys", "values"), past, (key, value), strict=True):
            if (old.shape[1], old.shape[3]) != (new.shape[1], new.shape[3]):
                raise ModelError(
                    f"layer {layer} computes {noun} with {new.shape[1]} heads of size {new.shape[3]}, but "
                    f"config.json has {old.shape[1]} of size {old.shape[3]}: "
                    "export does not support this architecture"
                )
        return past


class ConcatenatedCache(PastCache):
    """Attention sees the past and then the new rows: [B, K, S, H] and [B, K, T, H] give [B, K, S + T, H]."""

    def visible(
        self, layer: int, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        past_key, past_value = self.past_of(layer, key, value)
        return torch.cat([past_key, key], dim=2), torch.cat([past_value, value], dim=2)


class UpdatedCache(PastCache):
    """Attention sees the whole cache [B, K, S, H], with the new rows written from `position` on."""

    def __init__(self, past: Sequence[torch.Tensor], position: torch.Tensor) -> None:
        """Take the rows of earlier tokens and the place of the new ones.

        Args:
            past: key 0, value 0, ..., each [B, K, S, H].
            position: int64 [1], the row of the first new token.
        """
        super().__init__(past)
        self.position = position
        zero = torch.zeros(1, dtype=torch.int32)
        self.start = torch.cat([zero, zero, position.to(torch.int32), zero])

    def visible(
        self, layer: int, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        past_key, past_value = self.past_of(layer, key, value)
        return (
            dynamic_update_slice(past_key, key, self.start),
            dynamic_update_slice(past_value, value, self.start),
        )

    def get_query_offset(self, layer_idx: int = 0) -> Any:
        return self.position

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.past[0].shape[2], 0
