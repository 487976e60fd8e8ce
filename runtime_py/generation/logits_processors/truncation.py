"""Logits processors for sampling: the temperature, and the removal of unlikely tokens.

At least one token remains. Probabilities are float64, of the tokens that are not removed yet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from runtime_py.generation.logits_processors import LogitsProcessor

_TOP_H_TOKENS = 100
"""The number of tokens that `top_h` considers, in transformers and in the authors' code."""
_LOW_TEMPERATURE = 1e-3
"""Below, a quotient may be infinite. An offset of all logits does not change probabilities."""


def softmax(logits: np.ndarray) -> np.ndarray:
    """Compute probabilities.

    Args:
        logits: Finite logits [C], C >= 1.

    Returns:
        Their probabilities, float64 [C].
    """
    probabilities = logits.astype(np.float64)
    probabilities -= probabilities.max()
    np.exp(probabilities, out=probabilities)
    probabilities /= probabilities.sum()
    return probabilities


def temperature(value: float) -> LogitsProcessor:
    """Divide the logits.

    Args:
        value: The divisor, above 0. Above 1 the choice is more random.

    Returns:
        The processor.
    """

    divisor = np.float32(max(value, float(np.finfo(np.float32).tiny)))
    if value > _LOW_TEMPERATURE:
        return lambda ids, logits: logits / divisor
    return lambda ids, logits: (logits - logits.max()) / divisor  # all quotients are -inf or finite


def top_k(count: int) -> LogitsProcessor:
    """Keep the most likely tokens, and those as likely as the last of them.

    Args:
        count: How many, at least 1.

    Returns:
        The processor.
    """

    def process(ids: Sequence[int], logits: np.ndarray) -> np.ndarray:
        if count >= len(logits):
            return logits
        threshold = np.partition(logits, -count)[-count]
        return np.where(logits >= threshold, logits, np.float32(-np.inf))

    return process


def top_p(mass: float) -> LogitsProcessor:
    """Keep the smallest set of most likely tokens with a total probability (Holtzman et al. 2019).

    Args:
        mass: The smallest total probability, 0 to 1.

    Returns:
        The processor.
    """

    def select(probabilities: np.ndarray) -> np.ndarray:
        # Tokens below this threshold have at most 1 - mass in total: they need not be sorted.
        some = np.flatnonzero(probabilities >= (1 - mass) / len(probabilities))
        order = some[np.argsort(-probabilities[some], kind="stable")]
        before = np.cumsum(probabilities[order]) - probabilities[order]
        return order[(before < mass) | (before == 0)]

    return _keep(select)


def min_p(share: float) -> LogitsProcessor:
    """Drop the tokens below a share of the highest probability (Nguyen et al. 2024).

    Args:
        share: The share, 0 to 1.

    Returns:
        The processor.
    """
    return _keep(lambda probabilities: probabilities >= share * probabilities.max())


def typical_p(mass: float) -> LogitsProcessor:
    """Keep the tokens whose information is closest to the entropy (Meister et al. 2022).

    Args:
        mass: The smallest total probability of these tokens, above 0, below 1.

    Returns:
        The processor.
    """

    def select(probabilities: np.ndarray) -> np.ndarray:
        distance = np.abs(_information(probabilities) - _entropy_terms(probabilities).sum())
        order = np.argsort(distance, kind="stable")
        last = min(int((np.cumsum(probabilities[order]) < mass).sum()), len(order) - 1)
        return distance <= distance[order[last]]

    return _keep(select)


def epsilon_cutoff(epsilon: float) -> LogitsProcessor:
    """Drop the tokens below a probability (Hewitt et al. 2022).

    Args:
        epsilon: The probability, 0 to 1.

    Returns:
        The processor.
    """
    return _keep(lambda probabilities: probabilities >= min(epsilon, probabilities.max()))


def eta_cutoff(epsilon: float) -> LogitsProcessor:
    """Drop the tokens below a probability that falls with the entropy (Hewitt et al. 2022).

    Args:
        epsilon: The largest such probability, 0 to 1.

    Returns:
        The processor.
    """

    def select(probabilities: np.ndarray) -> np.ndarray:
        eta = min(epsilon, epsilon**0.5 * float(np.exp(-_entropy_terms(probabilities).sum())))
        return probabilities >= min(eta, probabilities.max())

    return _keep(select)


def top_h(share: float) -> LogitsProcessor:
    """Keep the most likely tokens up to a share of the entropy of the first 100 (Potraghloo et al. 2025).

    Args:
        share: The share, above 0, at most 1.

    Returns:
        The processor.
    """

    def select(probabilities: np.ndarray) -> np.ndarray:
        order = np.argsort(-probabilities, kind="stable")[:_TOP_H_TOKENS]
        likely = probabilities[order] / probabilities[order].sum()
        terms = _entropy_terms(likely)
        return order[(np.cumsum(terms) <= terms.sum() * share) | (np.arange(len(order)) == 0)]

    return _keep(select)


def _keep(select: Callable[[np.ndarray], np.ndarray]) -> LogitsProcessor:
    """Remove the tokens that `select` does not keep.

    Args:
        select: Takes the probabilities [C] of the tokens that are not removed yet. Returns a mask or indices.

    Returns:
        The processor.
    """

    def process(ids: Sequence[int], logits: np.ndarray) -> np.ndarray:
        candidates = np.flatnonzero(logits > -np.inf)
        if not len(candidates):
            return logits
        selected = candidates[select(softmax(logits[candidates]))]
        remaining = np.full_like(logits, -np.inf)
        remaining[selected] = logits[selected]
        return remaining

    return process


def _information(probabilities: np.ndarray) -> np.ndarray:
    """-log p, in nats; infinite for a probability that underflowed."""
    with np.errstate(divide="ignore"):
        return -np.log(probabilities)


def _entropy_terms(probabilities: np.ndarray) -> np.ndarray:
    """-p log p of each token, in nats. Their sum is the entropy."""
    return -probabilities * np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
