"""Scores of hidden keys: the numbers that stand for minus infinity in additive attention masks.

A key is hidden when its softmax weight is exactly 0 in float32. A number that one part of this project writes
must be one that another part recognizes, so they are ordered:

    LOWEST <= -HIDDEN_STEP <= HIDDEN_SCORE <= HIDDEN_THRESHOLD < log(smallest float32 > 0) = -103.3

`tests/o2o/operators/test_masks.py` checks this.
"""

from __future__ import annotations

import numpy as np

HIDDEN_THRESHOLD = -1e4
"""Mask entries up to this number are recognized as hidden. No score of a working model comes near."""

HIDDEN_SCORE = -1e9
"""The entry that lowerings write for a hidden key."""

HIDDEN_STEP = 2.0**30
"""Added to a score for each position that a key is ahead of its query: `min(0, HIDDEN_STEP * (query - key))`.

A power of two, so that its multiples are exact in float32.
"""

LOWEST = float(np.finfo(np.float32).min)
"""The entry that exports write for a hidden key, as transformers does."""
