"""Which keys the queries of each layer see: all earlier ones, a sliding window of these, or their own chunk.

Configurations name windows in many ways, and a model's code decides which layers have one. So nothing is read
from names here: transformers' own mask functions are recorded in a trial run and evaluated at positions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, chunked_overlay

from o2o.errors import ModelError

MaskFunction = Callable[[Any, Any, Any, Any], Any]
"""transformers' form of a mask: (batch, head, query position, key position) -> whether the key is visible."""


@dataclass(frozen=True)
class MaskRule:
    """Which of the keys up to its own position a query sees.

    Attributes:
        window: The last `window` keys; None for all.
        chunk: Only keys of the query's own chunk of `chunk` positions; None for all.
    """

    window: int | None = None
    chunk: int | None = None

    def limits(self, keys: int) -> bool:
        """Return whether the rule hides any of a number of keys.

        Args:
            keys: The number of keys.

        Returns:
            False if causality alone gives the same mask.
        """
        return min(self.window or keys, self.chunk or keys) < keys

    def hidden(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Compute which keys the rule hides; keys after the query are not its concern.

        Args:
            queries: Positions, integers that broadcast with `keys`.
            keys: Positions.

        Returns:
            bool, True for a hidden key.
        """
        hidden = torch.zeros_like(queries - keys, dtype=torch.bool)
        if self.window is not None:
            hidden = hidden | (keys <= queries - self.window)
        if self.chunk is not None:
            hidden = hidden | (keys < queries - queries % self.chunk)
        return hidden


CAUSAL = MaskRule()


@dataclass
class MaskRecorder:
    """Collects the mask functions that a model makes in a run, and which of them each attention gets."""

    masks: list[tuple[torch.Tensor, MaskFunction, int | None]] = field(default_factory=list)
    attentions: list[tuple[int, torch.Tensor | None, int | None]] = field(default_factory=list)

    def make_mask(
        self,
        *_: object,
        q_length: int,
        kv_length: int,
        mask_function: MaskFunction,
        local_size: int | None = None,
        **__: object,
    ) -> torch.Tensor:
        """Serve as transformers' mask interface: return a mask that stands for its function.

        Args:
            q_length: T.
            kv_length: The number of keys.
            mask_function: Computes the mask.
            local_size: The window or chunk of the mask.

        Returns:
            Zeros [1, 1, T, number of keys].
        """
        mask = torch.zeros(1, 1, q_length, kv_length)
        self.masks.append((mask, mask_function, local_size))
        return mask

    def attend(self, module: torch.nn.Module, mask: torch.Tensor | None, window: int | None) -> None:
        """Record that a layer's attention was called with a mask.

        Args:
            module: The attention module.
            mask: What `make_mask` returned, or None.
            window: The window that the layer names; only without a mask is it the layer's rule.
        """
        layer = getattr(module, "layer_idx", None)
        self.attentions.append((layer if isinstance(layer, int) else len(self.attentions), mask, window))

    def rules_by_mask(self, positions: int) -> list[MaskRule]:
        """Evaluate the recorded functions.

        Args:
            positions: The longest context of the model.

        Returns:
            The rule of each of `masks`.

        Raises:
            ModelError: A mask is neither causal nor a window nor chunks.
        """
        return [rule_of(function, size, positions) for _, function, size in self.masks]

    def rules_by_attention(self, positions: int) -> list[tuple[int, MaskRule]]:
        """Return the layer and the rule of each attention, in the order of the calls.

        Args:
            positions: The longest context of the model.

        Returns:
            (layer, rule) of each call.

        Raises:
            ModelError: A mask is neither causal nor a window nor chunks, or it was changed after it was made.
        """
        rules = self.rules_by_mask(positions)
        numbers = {id(mask): number for number, (mask, _, _) in enumerate(self.masks)}
        result = []
        for layer, mask, window in self.attentions:
            if mask is None:
                result.append((layer, MaskRule(window)))
                continue
            number = numbers.get(id(mask), 0 if len(set(rules)) == 1 else None)
            if number is None:
                raise ModelError(f"layer {layer} changes its attention mask, which export does not know")
            result.append((layer, rules[number]))
        return result


RECORDER: ContextVar[MaskRecorder | None] = ContextVar("mask_recorder", default=None)
_RULES: ContextVar[Iterator[MaskRule] | None] = ContextVar("mask_rules", default=None)


@contextlib.contextmanager
def recording(implementation: str) -> Iterator[MaskRecorder]:
    """Record the masks of a run.

    Args:
        implementation: transformers' name of the model's attention.

    Yields:
        Receives them.
    """
    recorder = MaskRecorder()
    token = RECORDER.set(recorder)
    ALL_MASK_ATTENTION_FUNCTIONS[implementation] = recorder.make_mask
    try:
        yield recorder
    finally:
        del ALL_MASK_ATTENTION_FUNCTIONS[implementation]
        RECORDER.reset(token)


@contextlib.contextmanager
def rules_of(rules: Sequence[MaskRule]) -> Iterator[None]:
    """Set the rules of the attentions of one call of a model.

    Args:
        rules: One rule for each attention, in the order of the calls; empty if they are not known.

    Yields:
        Nothing.
    """
    token = _RULES.set(iter(rules) if rules else None)
    try:
        yield
    finally:
        _RULES.reset(token)


def next_rule() -> MaskRule | None:
    """Return the rule of the attention that is called now.

    Returns:
        Its rule; None if rules are not known.
    """
    rules = _RULES.get()
    return None if rules is None else next(rules)


def rule_of(function: MaskFunction, size: int | None, positions: int) -> MaskRule:
    """Find the rule that a mask function computes, by its values.

    Args:
        function: The mask function.
        size: The window or chunk that transformers names beside it.
        positions: The longest context of the model.

    Returns:
        The rule that gives the same mask around all edges of the first windows, and at the end.

    Raises:
        ModelError: No rule does.
    """
    count = max(positions, 4 * (size or 0) + 3)
    keys = torch.arange(count)
    try:
        window = count - int(_row(function, count - 1, keys).nonzero()[0])
    except Exception as error:
        if size is not None and any(
            part.__qualname__.startswith(chunked_overlay.__name__) for part in _parts(function)
        ):
            return MaskRule(chunk=size)  # it holds a tensor without numbers, the padding, which is none here
        raise ModelError(
            "its attention mask cannot be computed from positions alone: export needs that"
        ) from error
    candidates = [CAUSAL, MaskRule(window=window), *([MaskRule(chunk=size)] if size else [])]
    edges = {size or window, window}
    queries = {
        0,
        1,
        count - 1,
        *(factor * edge + near for edge in edges for factor in (1, 2, 3) for near in (-1, 0, 1)),
    }
    samples = sorted(query for query in queries if 0 <= query < count)
    for rule in candidates:
        if all(
            torch.equal(
                _row(function, query, keys), (keys <= query) & ~rule.hidden(torch.tensor(query), keys)
            )
            for query in samples
        ):
            return rule
    raise ModelError(
        "its attention mask is neither causal nor a sliding window nor chunks: export needs one of these"
    )


def _parts(function: Any) -> Iterator[Any]:
    """A mask function and those that it combines."""
    yield function
    for cell in getattr(function, "__closure__", None) or ():
        inner = cell.cell_contents
        for part in inner if isinstance(inner, tuple) else (inner,):
            if callable(part) and hasattr(part, "__closure__"):
                yield from _parts(part)


def _row(function: MaskFunction, query: int, keys: torch.Tensor) -> torch.Tensor:
    """Which keys one query sees: bool [number of keys]."""
    zero = torch.tensor(0)
    return torch.as_tensor(function(zero, zero, torch.tensor(query), keys)).expand(keys.shape)
