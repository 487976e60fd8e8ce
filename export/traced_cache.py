"""What stands in for transformers' KV cache while a graph is traced.

transformers hands each layer's new keys (rotated) and values, [B, K, T, H], to `update`, and attends to
what `update` returns. So a cache here is a rule: what does attention see, and what is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from transformers.cache_utils import Cache

from export.custom_ops import dynamic_update_slice
from o2o.errors import ModelError

CacheForm = Literal["concat", "static"]
"""How decode takes its cache: joined to the new row (`Concatenated`), or with the row written into it."""


class Kept(Cache):
    """Attention sees the new keys and values alone; they are kept, layer by layer. For prefill."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self._kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def see(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What attention sees of `layer`, given its new `key` and `value`."""
        return key, value

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self._kept[layer_idx] = self.see(layer_idx, key_states, value_states)
        return self._kept[layer_idx]

    def __len__(self) -> int:
        """How many layers have come by."""
        return len(self._kept)

    def flat(self) -> list[torch.Tensor]:
        """What was kept: key 0, value 0, key 1, value 1, ..."""
        return [tensor for layer in sorted(self._kept) for tensor in self._kept[layer]]


class OntoPast(Kept):
    """A cache that is given what earlier tokens left. Base of the two forms of decode."""

    def __init__(self, past: Sequence[torch.Tensor]) -> None:
        """past: key 0, value 0, key 1, value 1, ..., each [B, K, C, H]."""
        super().__init__()
        self.past = past

    def past_of(
        self, layer: int, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The past key and value of `layer`. Raises ModelError if the new ones are of another shape."""
        past = self.past[2 * layer], self.past[2 * layer + 1]
        for what, old, new in zip(("keys", "values"), past, (key, value), strict=True):
            if (old.shape[1], old.shape[3]) != (new.shape[1], new.shape[3]):
                heads, size = new.shape[1], new.shape[3]
                raise ModelError(
                    f"layer {layer} makes {what} of {heads} heads of {size}, where config.json promises "
                    f"{old.shape[1]} of {old.shape[3]}: an architecture that export does not know"
                )
        return past


class Concatenated(OntoPast):
    """Attention sees the past and, last, the new: [B, K, C, H] and [B, K, T, H] give [B, K, C + T, H]."""

    def see(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        past_key, past_value = self.past_of(layer, key, value)
        return torch.cat([past_key, key], dim=2), torch.cat([past_value, value], dim=2)


class Written(OntoPast):
    """Attention sees the whole cache [B, K, S, H], the new rows written over it from `position` on."""

    def __init__(self, past: Sequence[torch.Tensor], position: torch.Tensor) -> None:
        """past: key 0, value 0, ..., each [B, K, S, H]. position: int64 [1], slot of the first new row."""
        super().__init__(past)
        zero = torch.zeros(1, dtype=torch.int32)
        self.start = torch.cat([zero, zero, position.to(torch.int32), zero])

    def see(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        past_key, past_value = self.past_of(layer, key, value)
        return (
            dynamic_update_slice(past_key, key, self.start),
            dynamic_update_slice(past_value, value, self.start),
        )
