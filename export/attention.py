"""Attention implementations for any model that uses transformers' attention interface.

`grouped` computes all scores at once. `blocked` computes them in blocks with an online softmax, so that only
one block exists at a time (Dao et al., FlashAttention, 2022). Options call it `flash`; transformers reserves
names with `flash` for its own kernels. Both become one operator, `o2o.causal_attention`, which does not
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

from export.custom_ops import causal_attention
from export.options import FLASH, GROUPED
from o2o.errors import ModelError
from o2o.operators.causal_attention import FlashBlockSizes, adaptive_blocks

NAMES = {GROUPED: "grouped", FLASH: "blocked"}  # transformers' names; it treats names with `flash` specially

# Context that attention is not given as arguments: the position of the queries, and the block sizes.
_POSITION: ContextVar[torch.Tensor | None] = ContextVar("position", default=None)
_BLOCKS: ContextVar[FlashBlockSizes | None] = ContextVar("blocks", default=None)


@contextlib.contextmanager
def queries_at(position: torch.Tensor | None) -> Iterator[None]:
    """Set the position of the first query of every attention.

    Without it, the queries belong to the last T keys, as with transformers' own growing cache.

    Args:
        position: int [1].

    Yields:
        Nothing.
    """
    token = _POSITION.set(position)
    try:
        yield
    finally:
        _POSITION.reset(token)


@contextlib.contextmanager
def blocks_of(blocks: FlashBlockSizes | None) -> Iterator[None]:
    """Set the block sizes of `blocked`.

    Args:
        blocks: The block sizes; None for `o2o.operators.causal_attention.adaptive_blocks`.

    Yields:
        Nothing.
    """
    token = _BLOCKS.set(blocks)
    try:
        yield
    finally:
        _BLOCKS.reset(token)


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
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: query [B, N, T, H], key and value [B, K, S, H] -> [B, T, N, H].

    Raises ModelError for what `o2o.causal_attention` does not compute.
    """
    T, S, H = query.shape[2], key.shape[2], query.shape[3]
    kind = type(module).__name__
    if softcap is not None or others.get("s_aux") is not None or others.get("position_bias") is not None:
        raise ModelError(
            f"{kind} has a softcap, sinks or a bias in its scores: export it with eager attention"
        )
    if getattr(module, "is_causal", True) is False:
        raise ModelError(f"{kind} is not causal: export it with eager attention")
    position = _POSITION.get()
    if position is None:
        if attention_mask is not None and attention_mask.dim() == 2 and not attention_mask.all():
            raise ModelError("the prompt is padded: use eager attention")
        if sliding_window is not None and sliding_window < S:
            raise ModelError(
                f"{kind} has a sliding window of {sliding_window} keys, {S} are given: use eager attention"
            )
        position = torch.tensor([S - T], dtype=torch.int64)
    scale = H**-0.5 if scaling is None else float(scaling)
    q_block, kv_block = (blocks.q, blocks.kv) if blocks else (0, 0)
    return causal_attention(query, key, value, position, scale, q_block, kv_block), None


for _name, _attention in (("grouped", _grouped), ("blocked", _blocked)):
    AttentionInterface.register(_name, _attention)
    AttentionMaskInterface.register(_name, flash_attention_mask)  # to detect padding
