"""How the next token is chosen from the logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from o2o.errors import UsageError

Sampler: TypeAlias = Callable[[np.ndarray, Sequence[int]], int]
"""logits [V], the ids so far (the prompt's, too) -> id. It must not keep or change the array: an engine may
reuse it."""


@dataclass(frozen=True)
class Sampling:
    """What the logits become before a token is drawn, in this order, which is that of transformers.

    repetition_penalty: what logits of ids that have been are divided by, or multiplied with where they are
    negative (Keskar et al. 2019, CTRL); 1 for nothing. temperature: what logits are divided by; 0: the
    likeliest is taken; None: 1 where anything else here asks for a draw, else 0. top_k: only so many of the
    likeliest. top_p: only the likeliest that make up this share together (Holtzman et al. 2019, nucleus).
    min_p: only those at least this share as likely as the likeliest (Nguyen et al. 2024). seed: the same
    numbers for the same seed; None for others each time.

    Raises UsageError for numbers out of range.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, right, wanted in (
            ("temperature", lambda x: 0 <= x < np.inf, "0 or more"),
            ("top_k", lambda x: x >= 1, "1 or more"),
            ("top_p", lambda x: 0 < x <= 1, "above 0, at most 1"),
            ("min_p", lambda x: 0 <= x <= 1, "from 0 to 1"),
            ("repetition_penalty", lambda x: 0 < x < np.inf, "above 0"),
            ("seed", lambda x: x >= 0, "0 or more"),
        ):
            number = getattr(self, name)
            if number is not None and not right(number):
                raise UsageError(f"{name.replace('_', ' ')} is {number:g}: it must be {wanted}")

    @property
    def draws(self) -> bool:
        """Whether chance has a part in it."""
        if self.temperature is None:
            return any(option is not None for option in (self.top_k, self.top_p, self.min_p, self.seed))
        return self.temperature > 0

    def sampler(self) -> Sampler:
        """A sampler that begins at the seed."""
        if not self.draws:
            return lambda logits, ids: greedy(self._penalised(logits, ids))
        generator = np.random.default_rng(self.seed)

        def draw(logits: np.ndarray, ids: Sequence[int]) -> int:
            candidates, probabilities = self.candidates(logits, ids)
            sums = np.cumsum(probabilities)
            chosen = np.searchsorted(sums, generator.random() * sums[-1], side="right")
            return int(candidates[min(chosen, len(candidates) - 1)])

        return draw

    def candidates(self, logits: np.ndarray, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """The ids that may be drawn after `ids`, ascending, and how likely each is, float64."""
        scores = self._penalised(logits, ids).astype(np.float64)
        scores /= 1.0 if self.temperature is None else self.temperature
        candidates = np.arange(len(scores))
        if self.top_k is not None and self.top_k < len(scores):
            least = np.partition(scores, -self.top_k)[-self.top_k]
            candidates = np.flatnonzero(scores >= least)
        scores = scores[candidates]
        likely = np.exp(scores - scores.max())
        likely /= likely.sum()
        if self.top_p is not None and self.top_p < 1:
            kept = _nucleus(likely, self.top_p)
            candidates, likely = candidates[kept], likely[kept]
        if self.min_p is not None:
            kept = np.flatnonzero(likely >= self.min_p * likely.max())
            candidates, likely = candidates[kept], likely[kept]
        return candidates, likely / likely.sum()

    def _penalised(self, logits: np.ndarray, ids: Sequence[int]) -> np.ndarray:
        if self.repetition_penalty == 1 or not len(ids):
            return logits
        seen = np.asarray(ids)
        told = logits[seen]
        scores = logits.copy()
        scores[seen] = np.where(told < 0, told * self.repetition_penalty, told / self.repetition_penalty)
        return scores


GREEDY = Sampling()


def greedy(logits: np.ndarray, ids: Sequence[int] = ()) -> int:
    """The likeliest id, the lowest of equals."""
    return int(np.argmax(logits))


def _nucleus(likely: np.ndarray, share: float) -> np.ndarray:
    """Where the likeliest are that reach `share` together, ascending; one at least."""
    # All that are less likely than this have no more than the rest: they need not be sorted.
    some = np.flatnonzero(likely >= (1 - share) / len(likely))
    order = some[np.argsort(-likely[some], kind="stable")]
    before = np.cumsum(likely[order]) - likely[order]
    return np.sort(order[(before < share) | (before == 0)])
