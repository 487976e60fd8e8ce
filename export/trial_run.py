"""A run of a model without numbers, before it is traced: what its layers cache, and which mask it takes.

Configurations name key heads and head sizes in many ways, and some layers differ from others. The run shows
both. It also shows whether a model takes a mask [B, T] of ones in place of an additive one, as BLOOM does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from export.attention import queries_at
from export.mask_rules import MaskRecorder, recording
from export.traced_cache import RecordingCache
from o2o.errors import O2oError

TOKENS = 2


@dataclass(frozen=True)
class Trial:
    """The result of a run.

    Attributes:
        caches: (number of heads, size of a head): key 0, value 0, key 1, ... None if the model cannot run so.
        takes_padding_mask: Whether the model's mask is [B, number of keys], 1 for each token.
        masks: The masks that the model makes itself, if it gets none; None if it cannot run so.
    """

    caches: Sequence[tuple[int, int]] | None = None
    takes_padding_mask: bool = False
    masks: MaskRecorder | None = None


def trial_run(
    call: Callable[..., Any], weights: Sequence[torch.Tensor], implementation: str = "eager"
) -> Trial:
    """Run a model on tensors that have shapes only.

    Args:
        call: Takes weights, input_ids, position_ids, mask and cache.
        weights: Tensors of the shapes of its parameters.
        implementation: transformers' name of the model's attention.

    Returns:
        The result. A model that cannot run without numbers fails when it is traced, with the reason.

    Raises:
        O2oError: Attention is of a kind that export does not support.
    """
    for takes_padding_mask in (False, True):
        cache = RecordingCache()
        try:
            with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
                positions = torch.arange(TOKENS)
                mask = torch.ones(1, TOKENS) if takes_padding_mask else torch.zeros(1, 1, TOKENS, TOKENS)
                with queries_at(positions[:1], mask):
                    call(weights, torch.zeros(1, TOKENS, dtype=torch.int64), positions[None], mask, cache)
        except O2oError:
            raise
        except Exception:
            continue
        caches = [(rows.shape[1], rows.shape[3]) for rows in cache.flat()]
        return Trial(caches, takes_padding_mask, _record_masks(call, weights, implementation))
    return Trial()


def _record_masks(
    call: Callable[..., Any], weights: Sequence[torch.Tensor], implementation: str
) -> MaskRecorder | None:
    """Run the model without a mask, so that it makes its own. None if it cannot run so."""
    with recording(implementation) as recorder:
        try:
            with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
                positions = torch.arange(TOKENS)
                with queries_at(positions[:1]):
                    ids = torch.zeros(1, TOKENS, dtype=torch.int64)
                    call(weights, ids, positions[None], None, RecordingCache())
        except O2oError:
            raise
        except Exception:
            return None
    return recorder
