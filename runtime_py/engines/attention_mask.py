"""Attention masks as an input of a model: causal, by the position of the first token."""

from __future__ import annotations

import numpy as np

HIDDEN = -0.7 * float(np.finfo(np.float32).max)
"""What hides a key in an additive mask: far below any score, and finite after one is added."""


def fill_mask(mask: np.ndarray, position: int, count: int, length: int) -> None:
    """Fill a causal mask, in place.

    Args:
        mask: Of rank 3 or more: [.., T, S], a row for each query. A float is 0, or a large negative number
            for a hidden key. A bool or integer is 1 for a visible key. Of rank 2, [1, S]: 1 for each key
            that holds a token, of any dtype.
        position: The position of the first query. Query t sees the keys 0 to `position` + t.
        count: The number of queries that are tokens, 1 <= `count` <= T.
        length: T.
    """
    keys = np.arange(mask.shape[-1])
    if mask.ndim < 3:
        mask[...] = keys < position + count
        return
    rows = mask.shape[-2]
    last = position + (np.arange(rows) if rows == length else np.full(rows, count - 1))
    visible = keys <= last[:, np.newaxis]
    if np.issubdtype(mask.dtype, np.floating):
        mask[...] = np.where(visible, 0, max(HIDDEN, float(np.finfo(mask.dtype).min)))
    else:
        mask[...] = visible
