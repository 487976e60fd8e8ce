"""Attention implementations for any model that uses transformers' attention interface.

What a family adds (scale, soft-cap, window, sinks, bias) arrives as an argument of the interface. So no
family needs code of its own. An argument that is not understood is refused by name.

`grouped` computes all scores at once. `blocked` computes them in blocks with an online softmax, so that only
one block exists at a time (Dao et al., FlashAttention, 2022). Options call it `flash`; transformers reserves
names with `flash` for its own kernels. Both become one operator, `o2o.attention`, which does not
repeat keys and values for the query heads that share them.

    AutoModelForCausalLM.from_pretrained(DIR, attn_implementation="blocked")     # also for `generate`
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask

from export.custom_ops import core_attention
from export.mask_rules import RECORDER, MaskRule, next_rule
from export.options import FLASH, GROUPED
from o2o.errors import ModelError
from o2o.operators.core_attention import FlashBlockSizes, adaptive_blocks
from o2o.operators.masks import LOWEST

NAMES = {GROUPED: "grouped", FLASH: "blocked"}  # transformers' names; it treats names with `flash` specially

# Context that attention is not given as arguments.
_POSITION: ContextVar[torch.Tensor | None] = ContextVar("position", default=None)
_CAUSAL_MASK: ContextVar[torch.Tensor | None] = ContextVar("causal_mask", default=None)
_IMPLEMENTATION: ContextVar[str] = ContextVar("implementation", default="eager")
_BLOCKS: ContextVar[FlashBlockSizes | None] = ContextVar("blocks", default=None)

_IGNORED = {
    *(
        "dropout",
        "is_causal",
        "position_ids",
        "cache_position",
        "past_key_values",
        "use_cache",
        "return_dict",
    ),
    *("output_attentions", "output_hidden_states", "output_router_logits", "logits_to_keep", "labels"),
}
"""Arguments of models that reach the interface and do not change attention; `is_causal` is checked."""


@contextlib.contextmanager
def queries_at(position: torch.Tensor | None, causal_mask: torch.Tensor | None = None) -> Iterator[None]:
    """Set the position of the first query of every attention.

    Without it, the queries belong to the last T keys, as with transformers' own growing cache.

    Args:
        position: int [1].
        causal_mask: The mask that the model is called with, if it is the causal mask of that position. A
            layer that passes it on needs no mask operand. Any other mask becomes an operand.

    Yields:
        Nothing.
    """
    tokens = _POSITION.set(position), _CAUSAL_MASK.set(causal_mask)
    try:
        yield
    finally:
        _POSITION.reset(tokens[0])
        _CAUSAL_MASK.reset(tokens[1])


@contextlib.contextmanager
def blocks_of(blocks: FlashBlockSizes | None) -> Iterator[None]:
    """Set the block sizes of `blocked`.

    Args:
        blocks: The block sizes; None for `o2o.operators.core_attention.adaptive_blocks`.

    Yields:
        Nothing.
    """
    token = _BLOCKS.set(blocks)
    try:
        yield
    finally:
        _BLOCKS.reset(token)


@contextlib.contextmanager
def implementation_of(name: str) -> Iterator[None]:
    """Set the attention implementation of a model of one's own.

    Args:
        name: A name of transformers.

    Yields:
        Nothing.
    """
    token = _IMPLEMENTATION.set(name)
    try:
        yield
    finally:
        _IMPLEMENTATION.reset(token)


def core_implementation() -> Any:
    """Return what computes `o2o.attention` in a model of one's own.

    Returns:
        A function of transformers' attention interface; None outside of an export, or of an eager one.
    """
    return {"grouped": _grouped, "blocked": _blocked}.get(_IMPLEMENTATION.get())


def _grouped(module: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *args: Any, **kw: Any) -> Any:
    return _attend(module, q, k, v, None, *args, **kw)


def _blocked(module: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *args: Any, **kw: Any) -> Any:
    return _attend(module, q, k, v, _BLOCKS.get() or adaptive_blocks(q.shape[2]), *args, **kw)


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    blocks: FlashBlockSizes | None,
    attention_mask: torch.Tensor | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: query [B, N, T, H], key and value [B, K, S, H] -> [B, T, N, H].

    Raises ModelError for what `o2o.attention` does not compute.
    """
    T, S, H = query.shape[2], key.shape[2], query.shape[3]
    kind = type(module).__name__
    if (recorder := RECORDER.get()) is not None:
        recorder.attend(module, attention_mask, sliding_window)
        attention_mask = None
    if unknown := sorted(name for name, item in others.items() if item is not None and name not in _IGNORED):
        raise ModelError(f"{kind} passes {', '.join(unknown)} to attention, which export does not know")
    if False in (getattr(module, "is_causal", True), others.get("is_causal")):
        raise ModelError(f"{kind} is not causal: export supports causal attention only")
    if value.shape != key.shape:
        raise ModelError(
            f"{kind} has keys of size {H} and values of size {value.shape[3]}: export needs equal sizes"
        )
    position, mask = _POSITION.get(), None
    if attention_mask is not None and attention_mask is not _CAUSAL_MASK.get():
        if attention_mask.dim() == 4:
            mask = _additive(attention_mask)
        elif not attention_mask.all():
            raise ModelError("the prompt is padded: use eager attention")
    if position_bias is not None:
        causal = _CAUSAL_MASK.get()
        if mask is None and causal is None:
            raise ModelError(f"{kind} adds a position bias to its scores: use eager attention")
        mask = position_bias + (mask if mask is not None else causal)  # type: ignore[operator]
    if position is None:
        position = torch.tensor([S - T], dtype=torch.int64)
    rule = next_rule() or MaskRule(sliding_window)
    window = 0
    if rule.chunk is None and mask is None:
        window = rule.window or 0 if rule.limits(S) else 0
    elif rule.limits(S):
        mask = _limited(mask, rule, position, T, S)
    q_block, kv_block = (blocks.q, blocks.kv) if blocks else (0, 0)
    attended = core_attention(
        query,
        key,
        value,
        position,
        H**-0.5 if scaling is None else float(scaling),
        mask,
        None,
        s_aux,
        float(softcap or 0.0),
        window,
        q_block,
        kv_block,
    )
    return attended, None


def _limited(
    mask: torch.Tensor | None, rule: MaskRule, position: torch.Tensor, T: int, S: int
) -> torch.Tensor:
    """A mask, or the causal one, that also hides what a rule hides: float32 [.., T, S]."""
    queries, keys = (position + torch.arange(T))[:, None], torch.arange(S)
    hidden = rule.hidden(queries, keys)
    if mask is None:
        mask, hidden = torch.zeros(1, 1, T, S), hidden | (keys > queries)
    return torch.where(hidden, LOWEST, mask)


def _additive(mask: torch.Tensor) -> torch.Tensor:
    """A mask of booleans as one of float32 that is added."""
    return mask if mask.dtype != torch.bool else torch.where(mask, 0.0, LOWEST)


for _name, _attention in (("grouped", _grouped), ("blocked", _blocked)):
    AttentionInterface.register(_name, _attention)
    AttentionMaskInterface.register(_name, flash_attention_mask)  # to detect padding
