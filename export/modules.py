"""Prefill and decode as modules for torch.export, with a name and a role for each input and output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch

from export.attention import queries_at
from export.model import LanguageModel
from export.traced_cache import ConcatenatedCache, RecordingCache, UpdatedCache
from o2o.contract import Role
from o2o.errors import ModelError, UsageError
from o2o.operators.masks import LOWEST

LAYOUT: Literal["BNTH"] = "BNTH"  # the layout of all keys and values here: [B, K, T, H]


class ExportModule(torch.nn.Module):
    """A graph to export. `forward` takes the tensors of `inputs`, in that order, then the model's parameters.

    `model` is no submodule, so that torch.export sees its parameters as inputs only.

    Attributes:
        signature: The signature's name.
        inputs: {name: role} in calling order, without parameters.
        outputs: {name: role} in calling order.
        cache_shapes: See `LanguageModel.cache_shapes`.
    """

    signature: str

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model
        self.cache_shapes = model.cache_shapes  # of a run of its own, which must not be within a trace
        self.inputs: dict[str, Role] = {"input_ids": Role("tokens")}
        self.outputs: dict[str, Role] = {"logits": Role("logits")}

    def example(self) -> tuple[Any, ...]:
        """Make example arguments for tracing.

        Returns:
            Arguments for `forward` with the right shapes and dtypes.
        """
        raise NotImplementedError

    def logits(
        self,
        weights: Sequence[torch.Tensor],
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        mask: torch.Tensor,
        keys: torch.Tensor,
        cache: RecordingCache,
        position: torch.Tensor,
    ) -> torch.Tensor:
        """Call the model and check that all its layers use the cache.

        Args:
            weights: See `LanguageModel`.
            input_ids: int64 [1, T].
            position_ids: int64 [1, T].
            mask: Additive float32 [1, 1, T, number of keys], causal.
            keys: int64 [number of keys], the position of each key.
            cache: Receives the keys and values of each layer.
            position: int64 [1], the position of the first token.

        Returns:
            float32 [1, T, V].

        Raises:
            ModelError: A layer does not use the cache.
        """
        with queries_at(position, mask):
            masks = self.model.masks_of(mask, position_ids[0], keys)
            logits = self.model(weights, input_ids, position_ids, masks, cache)
        if len(cache) != self.model.layers:
            raise ModelError(
                f"{len(cache)} of the {self.model.layers} layers of this {self.model.kind} model use a KV "
                "cache: export does not support this architecture"
            )
        return logits


class PrefillModule(ExportModule):
    """A prompt of exactly T tokens, at positions 0 to T-1.

    input_ids int64 [1, T] -> logits float32 [1, T, V], present_key_0, present_value_0, present_key_1, ...
    float32 [1, K, T, H], keys rotated. Pad a shorter prompt at its end: no token sees a later one.
    """

    signature = "prefill"
    positions: torch.Tensor  # int64 [1, T]
    mask: torch.Tensor  # additive, [1, 1, T, T]

    def __init__(self, model: LanguageModel, tokens: int) -> None:
        """Set up the graph.

        Args:
            model: The model to call.
            tokens: T.

        Raises:
            UsageError: The model cannot see T tokens.
        """
        super().__init__(model)
        model.check_length(tokens)
        self.outputs |= _cache_roles(model, "present", "key", "value")
        self.register_buffer("positions", torch.arange(tokens)[None])
        self.register_buffer("mask", torch.full((tokens, tokens), LOWEST).triu(1)[None, None])

    def example(self) -> tuple[Any, ...]:
        return torch.zeros_like(self.positions), self.model.dummies()

    def forward(self, input_ids: torch.Tensor, weights: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        cache = RecordingCache()
        logits = self.logits(
            weights, input_ids, self.positions, self.mask, self.positions[0], cache, self.positions[0, :1]
        )
        return logits, *cache.flat()


class CachedModule(ExportModule):
    """T tokens at positions p to p+T-1, after the tokens whose rows are in the caches. Base of both forms.

    input_ids int64 [1, T], cache_position int64 [1] = p, past_key_0, past_value_0, past_key_1, ... float32
    [1, K, S, H] -> logits float32 [1, T, V]. The first p rows of the caches count.
    """

    steps: torch.Tensor  # int64 [T]: each token's distance from p
    slots: torch.Tensor  # int64 [number of keys]: a token sees the keys whose slot is below its position
    keys: torch.Tensor  # int64 [number of keys]: the position of each key, for windows

    def __init__(
        self,
        model: LanguageModel,
        signature: str,
        tokens: int,
        capacity: int,
        slots: torch.Tensor,
        keys: torch.Tensor,
    ) -> None:
        super().__init__(model)
        self.signature = signature
        self.capacity = capacity
        caches = _cache_roles(model, "past", "key_cache", "value_cache")
        self.inputs |= {
            "cache_position": Role("position", rope="; ".join(model.rope_choices) or None)
        } | caches
        self.register_buffer("steps", torch.arange(tokens))
        self.register_buffer("slots", slots)
        self.register_buffer("keys", keys)

    def example(self) -> tuple[Any, ...]:
        caches = tuple(
            torch.zeros(()).expand(1, heads, self.capacity, size)  # no memory
            for heads, size in self.cache_shapes
        )
        position = torch.zeros(1, dtype=torch.int64)
        return torch.zeros_like(self.steps)[None], position, caches, self.model.dummies()

    def read(
        self,
        input_ids: torch.Tensor,
        cache_position: torch.Tensor,
        cache: RecordingCache,
        weights: Sequence[torch.Tensor],
    ) -> torch.Tensor:
        """Mask the keys after each token and compute the logits.

        Args:
            input_ids: int64 [1, T].
            cache_position: int64 [1], p.
            cache: Which keys and values attention sees.
            weights: See `LanguageModel`.

        Returns:
            float32 [1, T, V].
        """
        positions = cache_position + self.steps
        mask = torch.where(self.slots < positions[:, None], 0.0, LOWEST)[None, None]
        return self.logits(weights, input_ids, positions[None], mask, self.keys, cache, cache_position)


class ConcatenatedCacheModule(CachedModule):
    """One token, whose key and value follow the S rows of the past. p is 0..S.

    `logits` is the only output.
    """

    def __init__(self, model: LanguageModel, capacity: int) -> None:
        """Set up the graph.

        Args:
            model: The model to call.
            capacity: S.

        Raises:
            UsageError: The model cannot see S + 1 tokens, or its attention needs each key in the row of its
                position, where the new key is not.
        """
        model.check_length(capacity)
        model.check_length(capacity + 1)
        if model.has_core_operator:
            raise UsageError("attention implementations grouped and flash need --cache static")
        # The new key comes last and is always visible: its slot is -1, and it is behind every window.
        slots, keys = [*range(capacity), -1], [*range(capacity), capacity]
        super().__init__(model, "decode", 1, capacity, torch.tensor(slots), torch.tensor(keys))

    def forward(
        self,
        input_ids: torch.Tensor,
        cache_position: torch.Tensor,
        past: Sequence[torch.Tensor],
        weights: Sequence[torch.Tensor],
    ) -> torch.Tensor:
        return self.read(input_ids, cache_position, ConcatenatedCache(past), weights)


class StaticCacheModule(CachedModule):
    """T tokens, whose keys and values are written into caches of S rows from row p on. p is 0..S-T.

    After `logits` come the updated caches, present_key_0, present_value_0, ... float32 [1, K, S, H]. Decode
    is this with T = 1; a larger T reads a piece of a prompt, or all of it. Pad a shorter piece at its end:
    no token sees a later one, and the next piece overwrites the padding.
    """

    def __init__(self, model: LanguageModel, signature: str, tokens: int, capacity: int) -> None:
        """Set up the graph.

        Args:
            model: The model to call.
            signature: The signature's name.
            tokens: T.
            capacity: S.

        Raises:
            UsageError: The model cannot see S tokens, or the caches cannot hold T.
        """
        model.check_length(tokens)
        model.check_length(capacity)
        if tokens > capacity:
            raise UsageError(f"{tokens} tokens do not fit into caches of {capacity}")
        # Counted from -1, so that each token sees the key at its own position.
        keys = torch.arange(capacity)
        super().__init__(model, signature, tokens, capacity, keys - 1, keys)
        self.outputs |= _cache_roles(model, "present", "key", "value")

    def forward(
        self,
        input_ids: torch.Tensor,
        cache_position: torch.Tensor,
        past: Sequence[torch.Tensor],
        weights: Sequence[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        cache = UpdatedCache(past, cache_position)
        logits = self.read(input_ids, cache_position, cache, weights)
        return logits, *cache.flat()


def _cache_roles(model: LanguageModel, prefix: str, key: Any, value: Any) -> dict[str, Role]:
    """{prefix_key_0: ..., prefix_value_0: ..., prefix_key_1: ...} with the roles `key` and `value`."""
    return {
        f"{prefix}_{noun}_{layer}": Role(kind, layer, LAYOUT, rule.window, rule.chunk)
        for layer, rule in enumerate(model.mask_rules)
        for noun, kind in (("key", key), ("value", value))
    }
