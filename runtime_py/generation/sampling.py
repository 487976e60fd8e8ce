"""Sampling: the choice of the next token from the logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from o2o.errors import UsageError

Sampler: TypeAlias = Callable[[np.ndarray, Sequence[int]], int]
"""Takes logits [V] and the token ids so far, including the prompt; returns a token id. It must neither keep
nor change the array, which an engine may reuse."""


@dataclass(frozen=True)
class Sampling:
    """Sampling options. They are applied to the logits in the order of transformers: penalty, temperature,
    top k, top p, min p.

    Attributes:
        temperature: Divides the logits; 0 is greedy decoding. None is 1 if another option asks for sampling
            (`top_k`, `top_p`, `min_p`, `seed`), else 0.
        top_k: Sample from this number of most likely tokens.
        top_p: Sample from the smallest set of most likely tokens with at least this total probability
            (nucleus sampling, Holtzman et al. 2019).
        min_p: Drop tokens below this share of the highest probability (Nguyen et al. 2024).
        repetition_penalty: Divides positive logits of tokens already in the text, and multiplies negative
            ones (CTRL, Keskar et al. 2019). 1 is none.
        seed: Seed of the random numbers; None for a new one each time.

    Raises:
        UsageError: A number is out of range.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, in_range, range_text in (
            ("temperature", lambda x: 0 <= x < np.inf, "0 or more"),
            ("top_k", lambda x: x >= 1, "1 or more"),
            ("top_p", lambda x: 0 < x <= 1, "above 0, at most 1"),
            ("min_p", lambda x: 0 <= x <= 1, "from 0 to 1"),
            ("repetition_penalty", lambda x: 0 < x < np.inf, "above 0"),
            ("seed", lambda x: x >= 0, "0 or more"),
        ):
            number = getattr(self, name)
            if number is not None and not in_range(number):
                raise UsageError(f"{name.replace('_', ' ')} is {number:g}: it must be {range_text}")

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn at random; otherwise decoding is greedy."""
        if self.temperature is None:
            return any(option is not None for option in (self.top_k, self.top_p, self.min_p, self.seed))
        return self.temperature > 0

    def sampler(self) -> Sampler:
        """Create a sampler for one text.

        Returns:
            A sampler with random numbers from the seed on.
        """
        if not self.draws:
            return lambda logits, ids: greedy(self._penalized(logits, ids))
        generator = np.random.default_rng(self.seed)

        def draw(logits: np.ndarray, ids: Sequence[int]) -> int:
            candidates, probabilities = self.candidates(logits, ids)
            sums = np.cumsum(probabilities)
            index = np.searchsorted(sums, generator.random() * sums[-1], side="right")
            return int(candidates[min(index, len(candidates) - 1)])

        return draw

    def candidates(self, logits: np.ndarray, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Compute the distribution that a token is drawn from.

        Args:
            logits: float32 [V].
            ids: The token ids so far, including the prompt.

        Returns:
            The token ids that may be drawn, ascending, and their probabilities, float64. Both are [C] with
            1 <= C <= V.
        """
        scores = self._penalized(logits, ids).astype(np.float64)
        scores /= 1.0 if self.temperature is None else self.temperature
        candidates = np.arange(len(scores))
        if self.top_k is not None and self.top_k < len(scores):
            threshold = np.partition(scores, -self.top_k)[-self.top_k]
            candidates = np.flatnonzero(scores >= threshold)
        scores = scores[candidates]
        probabilities = np.exp(scores - scores.max())
        probabilities /= probabilities.sum()
        if self.top_p is not None and self.top_p < 1:
            nucleus = _nucleus(probabilities, self.top_p)
            candidates, probabilities = candidates[nucleus], probabilities[nucleus]
        if self.min_p is not None:
            likely = np.flatnonzero(probabilities >= self.min_p * probabilities.max())
            candidates, probabilities = candidates[likely], probabilities[likely]
        return candidates, probabilities / probabilities.sum()

    def _penalized(self, logits: np.ndarray, ids: Sequence[int]) -> np.ndarray:
        if self.repetition_penalty == 1 or not len(ids):
            return logits
        repeated = np.asarray(ids)
        scores, penalty = logits.copy(), self.repetition_penalty
        old = logits[repeated]
        scores[repeated] = np.where(old < 0, old * penalty, old / penalty)
        return scores


GREEDY = Sampling()


def greedy(logits: np.ndarray, ids: Sequence[int] = ()) -> int:
    """Choose the most likely token.

    Args:
        logits: [V].
        ids: Not used; a `Sampler` takes them.

    Returns:
        The token id with the largest logit; of equal ones the lowest.
    """
    return int(np.argmax(logits))


def _nucleus(probabilities: np.ndarray, top_p: float) -> np.ndarray:
    """Indices of the most likely tokens with at least `top_p` in total, ascending; one at least."""
    # Tokens below this threshold have at most 1 - top_p in total: they need not be sorted.
    some = np.flatnonzero(probabilities >= (1 - top_p) / len(probabilities))
    order = some[np.argsort(-probabilities[some], kind="stable")]
    before = np.cumsum(probabilities[order]) - probabilities[order]
    return np.sort(order[(before < top_p) | (before == 0)])
