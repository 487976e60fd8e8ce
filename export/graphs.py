"""What prefill and decode take and give: modules for torch.export, with a name and a role for each end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch

from export.attention import queries_at
from export.model import LanguageModel
from export.traced_cache import Concatenated, Kept, Written
from o2o.contract import Role
from o2o.errors import ModelError, UsageError
from o2o.operators.masks import LOWEST

LAYOUT: Literal["BNTH"] = "BNTH"  # of all keys and values here: [B, K, T, H]


class Graph(torch.nn.Module):
    """A graph to export. `forward` takes what `inputs` names, in that order, then the model's parameters.

    signature: its name. inputs, outputs: {name: role}, in calling order. `model` is no submodule, so that
    torch.export sees its parameters as inputs only.
    """

    signature: str

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model
        self.inputs: dict[str, Role] = {"input_ids": Role("tokens")}
        self.outputs: dict[str, Role] = {"logits": Role("logits")}

    def example(self) -> tuple[Any, ...]:
        """Arguments for `forward` with the right shapes and dtypes."""
        raise NotImplementedError

    def logits(
        self,
        weights: Sequence[torch.Tensor],
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        mask: torch.Tensor,
        cache: Kept,
        position: torch.Tensor,
    ) -> torch.Tensor:
        """Call the model (see `LanguageModel`). Raises ModelError if a layer passes the cache by.

        position: int64 [1], of the first token.
        """
        with queries_at(position):
            logits = self.model(weights, input_ids, position_ids, mask, cache)
        if len(cache) != self.model.layers:
            raise ModelError(
                f"{len(cache)} of the {self.model.layers} layers of this {self.model.kind} model use a cache "
                "of keys and values: an architecture that export does not know"
            )
        return logits


class Prefill(Graph):
    """A prompt of exactly T tokens, at positions 0 to T-1.

    input_ids int64 [1, T] -> logits float32 [1, T, V], present_key_0, present_value_0, present_key_1, ...
    float32 [1, K, T, H], keys rotated. A shorter prompt is padded at its end: what follows a token is
    never seen by it.
    """

    signature = "prefill"
    positions: torch.Tensor  # int64 [1, T]
    mask: torch.Tensor  # additive, [1, 1, T, T]

    def __init__(self, model: LanguageModel, tokens: int) -> None:
        """Raises UsageError for more tokens than the model can see."""
        super().__init__(model)
        model.check_length(tokens)
        self.outputs |= _ends(model, "present", "key", "value")
        self.register_buffer("positions", torch.arange(tokens)[None])
        self.register_buffer("mask", torch.full((tokens, tokens), LOWEST).triu(1)[None, None])

    def example(self) -> tuple[Any, ...]:
        return torch.zeros_like(self.positions), self.model.dummies()

    def forward(self, input_ids: torch.Tensor, weights: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        cache = Kept()
        logits = self.logits(weights, input_ids, self.positions, self.mask, cache, self.positions[0, :1])
        return logits, *cache.flat()


class Cached(Graph):
    """T tokens at positions p to p+T-1, behind what earlier tokens left in caches. Base of the two forms.

    input_ids int64 [1, T], cache_position int64 [1] = p, past_key_0, past_value_0, past_key_1, ... float32
    [1, K, C, H] of which the first p rows count -> logits float32 [1, T, V].
    """

    steps: torch.Tensor  # int64 [T]: how far behind p each token is
    slots: torch.Tensor  # int64 [number of keys]: a token sees the keys whose slot is before its position

    def __init__(
        self, model: LanguageModel, signature: str, tokens: int, capacity: int, slots: torch.Tensor
    ) -> None:
        super().__init__(model)
        self.signature = signature
        self.capacity = capacity
        self.inputs |= {"cache_position": Role("position")} | _ends(model, "past", "key_cache", "value_cache")
        self.register_buffer("steps", torch.arange(tokens))
        self.register_buffer("slots", slots)

    def example(self) -> tuple[Any, ...]:
        shape = 1, self.model.key_value_heads, self.capacity, self.model.head_dim
        caches = tuple(torch.zeros(()).expand(shape) for _ in range(2 * self.model.layers))  # no memory
        position = torch.zeros(1, dtype=torch.int64)
        return torch.zeros_like(self.steps)[None], position, caches, self.model.dummies()

    def read(
        self,
        input_ids: torch.Tensor,
        cache_position: torch.Tensor,
        cache: Kept,
        weights: Sequence[torch.Tensor],
    ) -> torch.Tensor:
        """Logits, the keys that `cache` shows masked: additive [1, 1, T, number of keys]."""
        positions = cache_position + self.steps
        mask = torch.where(self.slots < positions[:, None], 0.0, LOWEST)[None, None]
        return self.logits(weights, input_ids, positions[None], mask, cache, cache_position)


class DecodeConcatenated(Cached):
    """One token: its key and value stand behind the past, in all C + 1; `logits` is the only output. p in
    0..C."""

    def __init__(self, model: LanguageModel, capacity: int) -> None:
        """Raises UsageError for more tokens than the model can see, or attention that goes by positions."""
        model.check_length(capacity)
        model.check_length(capacity + 1)
        if model.causal_operator:
            raise UsageError("a new key behind all others is in no place of its own: take --cache static")
        # The new key comes last and is always visible: its slot counts as -1.
        super().__init__(model, "decode", 1, capacity, torch.tensor([*range(capacity), -1]))

    def forward(
        self,
        input_ids: torch.Tensor,
        cache_position: torch.Tensor,
        past: Sequence[torch.Tensor],
        weights: Sequence[torch.Tensor],
    ) -> torch.Tensor:
        return self.read(input_ids, cache_position, Concatenated(past), weights)


class Static(Cached):
    """T tokens, their keys and values written into caches of C = S rows at p; after `logits` come the updated
    caches, present_key_0, present_value_0, ... float32 [1, K, S, H]. p in 0..S-T.

    Decode is this with T = 1; with more, it reads a piece of a prompt, or all of it. A shorter piece is
    padded at its end: what follows a token is never seen by it, and written over by the next piece.
    """

    def __init__(self, model: LanguageModel, signature: str, tokens: int, capacity: int) -> None:
        """Raises UsageError for more tokens than the model can see or the caches can hold."""
        model.check_length(tokens)
        model.check_length(capacity)
        if tokens > capacity:
            raise UsageError(f"{tokens} tokens do not fit into caches of {capacity}")
        # Counted from -1, so that each token sees the key at its own position.
        super().__init__(model, signature, tokens, capacity, torch.arange(capacity) - 1)
        self.outputs |= _ends(model, "present", "key", "value")

    def forward(
        self,
        input_ids: torch.Tensor,
        cache_position: torch.Tensor,
        past: Sequence[torch.Tensor],
        weights: Sequence[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        cache = Written(past, cache_position)
        logits = self.read(input_ids, cache_position, cache, weights)
        return logits, *cache.flat()


def _ends(model: LanguageModel, prefix: str, key: Any, value: Any) -> dict[str, Role]:
    """{prefix_key_0: ..., prefix_value_0: ..., prefix_key_1: ...} with the roles `key` and `value`."""
    return {
        f"{prefix}_{what}_{layer}": Role(kind, layer, LAYOUT)
        for layer in range(model.layers)
        for what, kind in (("key", key), ("value", value))
    }
