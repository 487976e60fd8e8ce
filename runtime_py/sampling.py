"""How the next token is chosen from the logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

Sampler: TypeAlias = Callable[[np.ndarray], int]
"""logits [V] -> id. It must not keep the array: an engine may reuse it."""


def greedy(logits: np.ndarray) -> int:
    """The likeliest id, the lowest of equals."""
    return int(np.argmax(logits))
