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
from export.traced_cache import RecordingCache
from o2o.errors import O2oError

TOKENS = 2


@dataclass(frozen=True)
class Trial:
    """The result of a run.

    Attributes:
        caches: (number of heads, size of a head): key 0, value 0, key 1, ... None if the model cannot run so.
        takes_padding_mask: Whether the model's mask is [B, number of keys], 1 for each token.
    """

    caches: Sequence[tuple[int, int]] | None = None
    takes_padding_mask: bool = False


def trial_run(call: Callable[..., Any], weights: Sequence[torch.Tensor]) -> Trial:
    """Run a model on tensors that have shapes only.

    Args:
        call: Takes weights, input_ids, position_ids, mask and cache.
        weights: Tensors of the shapes of its parameters.

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
        return Trial([(rows.shape[1], rows.shape[3]) for rows in cache.flat()], takes_padding_mask)
    return Trial()
