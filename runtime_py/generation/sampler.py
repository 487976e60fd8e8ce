"""The choice of the next token: logits processors, then the largest logit or a draw."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from o2o.errors import ModelError
from runtime_py.generation.logits_processors import LogitsProcessor
from runtime_py.generation.logits_processors.truncation import softmax
from runtime_py.generation.sampling import Sampling

Sampler: TypeAlias = Callable[[Sequence[int], np.ndarray], int]
"""Takes the token ids so far, including the prompt, and the logits [V] after them; returns a token id."""


def sampler(sampling: Sampling, processors: Sequence[LogitsProcessor]) -> Sampler:
    """Create a sampler for one text.

    Args:
        sampling: Says whether tokens are drawn, and the seed.
        processors: Applied to the logits in this order.

    Returns:
        A sampler. It raises ModelError if no token has a finite logit.
    """
    generator = np.random.default_rng(sampling.seed) if sampling.draws else None

    def choose(ids: Sequence[int], logits: np.ndarray) -> int:
        if processors:
            with np.errstate(
                over="ignore", divide="ignore", invalid="ignore"
            ):  # extreme settings: `_largest` checks
                for process in processors:
                    logits = process(ids, logits)
        token = _largest(logits)
        return token if generator is None else draw(logits, generator)

    return choose


def _largest(logits: np.ndarray) -> int:
    """The token with the largest logit; of equal ones the lowest. Raises ModelError without a finite one."""
    token = int(logits.argmax())  # of NaN, if there is one
    if not math.isfinite(logits[token]):
        raise ModelError(
            "no token can be chosen: the logits are not finite, or generation_config.json, logit biases or "
            "logits processors forbid all tokens"
        )
    return token


def distribution(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the distribution that a token is drawn from.

    Args:
        logits: [V]; -inf for tokens that are not drawn.

    Returns:
        The token ids that may be drawn, ascending, and their probabilities, float64. Both are [C] with
        1 <= C <= V.
    """
    candidates = np.flatnonzero(logits > -np.inf)
    return candidates, softmax(logits[candidates])


def draw(logits: np.ndarray, generator: np.random.Generator) -> int:
    """Draw a token.

    Args:
        logits: As for `distribution`.
        generator: The random numbers; one is used.

    Returns:
        The token id.
    """
    candidates, probabilities = distribution(logits)
    sums = np.cumsum(probabilities)
    index = np.searchsorted(sums, generator.random() * sums[-1], side="right")
    return int(candidates[min(index, len(candidates) - 1)])
