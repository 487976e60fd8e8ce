"""GPT-Neo's attention as `o2o.attention`.

Its layers do not use transformers' attention interface. The window of a local layer is a buffer. Its rows are
selected by the number of keys: that is right for a cache that grows, and wrong for one of fixed size.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoSelfAttention


def use_interface(model: Any, implementation: str) -> None:
    """Let all layers call an implementation of transformers' attention interface.

    Args:
        model: A GPT-Neo model, changed in place.
        implementation: The name of the implementation.
    """
    attend, config = AttentionInterface()[implementation], model.config
    for module in model.modules():
        if isinstance(module, GPTNeoSelfAttention):
            window = config.window_size if module.attention_type == "local" else None
            module._attn = partial(_attend, attend, module, window)


def _attend(
    attend: Any,
    module: torch.nn.Module,
    window: int | None,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, None]:
    """The module's `_attn`: [B, N, T, H] from queries that have no scale. The mask is the causal one."""
    attended, _ = attend(module, query, key, value, None, scaling=1.0, sliding_window=window)
    return attended.transpose(1, 2), None
