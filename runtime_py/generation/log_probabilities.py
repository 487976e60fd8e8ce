"""Log-probabilities of tokens: the model's own, of the logits before temperature and logits processors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class TokenLogProbability(NamedTuple):
    """A token and its log-probability.

    Attributes:
        id: The token id.
        log_probability: Its natural logarithm, in nats.
    """

    id: int
    log_probability: float


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Compute log-probabilities.

    Args:
        logits: [..., V].

    Returns:
        log p in nats, float64 [..., V].
    """
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def top_tokens(log_probabilities: np.ndarray, count: int) -> tuple[TokenLogProbability, ...]:
    """Find the most likely tokens.

    Args:
        log_probabilities: [V].
        count: How many; at most V are returned.

    Returns:
        The tokens, the most likely first; of equally likely ones the lower id first.
    """
    count = min(count, len(log_probabilities))
    if count == 0:
        return ()
    threshold = np.partition(log_probabilities, -count)[-count]
    candidates = np.flatnonzero(log_probabilities >= threshold)
    order = candidates[np.argsort(-log_probabilities[candidates], kind="stable")][:count]
    return tuple(TokenLogProbability(int(token), float(log_probabilities[token])) for token in order)
