"""Rotary position embeddings that depend on the length of a text, fixed for the capacity of a graph.

- `longrope` (Phi-3, Phi-4-mini): short factors up to the original length, long factors beyond it.
- `dynamic` (NTK): plain up to `max_position_embeddings`; beyond it, the base grows with the length.

transformers decides by the longest position of each call. A graph has one set of frequencies, so the capacity
decides here: rows that were cached early and late then have the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from export.config import VARYING_ROPES


def fix_frequencies(model: torch.nn.Module, context: int) -> None:
    """Set the rotary frequencies of a context, which stay the same for shorter texts.

    Args:
        model: A model of transformers, whose buffers are real. Changed in place.
        context: S, tokens.
    """
    for module in model.modules():
        for kind, layer_type in _varying(module):
            prefix = "" if layer_type is None else f"{layer_type}_"
            arguments = {} if layer_type is None else {"layer_type": layer_type}
            frequencies, scaling = ROPE_INIT_FUNCTIONS[kind](
                module.config, torch.device("cpu"), seq_len=context, **arguments
            )
            for name in ("inv_freq", "original_inv_freq"):
                getattr(module, prefix + name).copy_(frequencies)
            setattr(module, f"{prefix}attention_scaling", scaling)
            if layer_type is None:
                module.rope_type = "default"  # type: ignore[assignment]  # which transformers leaves alone
            else:
                module.rope_type = {**module.rope_type, layer_type: "default"}  # type: ignore[dict-item, assignment]


def _varying(module: Any) -> Iterator[tuple[str, str | None]]:
    """(kind, type of layers or None) of each rotary embedding of a module that depends on the length."""
    kinds = getattr(module, "rope_type", None)
    pairs = [(kind, name) for name, kind in kinds.items()] if isinstance(kinds, dict) else [(kinds, None)]
    yield from ((kind, name) for kind, name in pairs if kind in VARYING_ROPES)
