"""Logits processors that raise or lower logits: penalties and biases."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from runtime_py.generation.logits_processors import LogitsProcessor


def repetition_penalty(penalty: float) -> LogitsProcessor:
    """Penalize the tokens that are in the text, prompt included (CTRL, Keskar et al. 2019).

    Args:
        penalty: Divides positive logits and multiplies negative ones; above 0, and above 1 to penalize.

    Returns:
        The processor.
    """
    return lambda ids, logits: _scaled(logits, ids, penalty)


def encoder_repetition_penalty(penalty: float, prompt: Sequence[int]) -> LogitsProcessor:
    """Favor the tokens of the prompt.

    Args:
        penalty: Multiplies positive logits and divides negative ones; above 0, and above 1 to favor.
        prompt: Token ids [P].

    Returns:
        The processor.
    """
    return lambda ids, logits: _scaled(logits, prompt, 1 / penalty)


def _scaled(logits: np.ndarray, tokens: Sequence[int], penalty: float) -> np.ndarray:
    scaled, repeated = logits.copy(), np.asarray(tokens, np.int64)
    old = logits[repeated]
    scaled[repeated] = np.where(old < 0, old * penalty, old / penalty)
    return scaled


def frequency_and_presence_penalty(frequency: float, presence: float, prompt_length: int) -> LogitsProcessor:
    """Penalize the tokens that were generated, as the OpenAI API does. The prompt does not count.

    Args:
        frequency: Subtracted once for each occurrence of the token.
        presence: Subtracted once if there is any.
        prompt_length: P.

    Returns:
        The processor.
    """

    def process(ids: Sequence[int], logits: np.ndarray) -> np.ndarray:
        penalized = logits.copy()
        tokens, counts = np.unique(np.asarray(ids[prompt_length:], np.int64), return_counts=True)
        penalized[tokens] -= (counts * frequency + presence).astype(logits.dtype)
        return penalized

    return process


def sequence_bias(biases: Mapping[tuple[int, ...], float]) -> LogitsProcessor:
    """Add a bias to the last token of a sequence where the text ends with the tokens before it.

    Args:
        biases: The bias by sequence of token ids. -inf removes the token.

    Returns:
        The processor.
    """
    by_prefix: dict[tuple[int, ...], dict[int, float]] = defaultdict(dict)
    for (*prefix, token), bias in biases.items():
        by_prefix[tuple(prefix)][token] = bias
    groups = {
        prefix: (np.array(list(group), np.int64), np.array(list(group.values()), np.float32))
        for prefix, group in by_prefix.items()
    }
    lengths = sorted({len(prefix) for prefix in groups})

    def process(ids: Sequence[int], logits: np.ndarray) -> np.ndarray:
        biased = logits.copy()
        for length in lengths:
            if length <= len(ids) and (group := groups.get(tuple(ids[len(ids) - length :]))):
                tokens, added = group
                biased[tokens] += added
        return biased

    return process


def exponential_decay_length_penalty(
    start: int, factor: float, eos: Sequence[int], prompt_length: int
) -> LogitsProcessor:
    """Raise the logits of the end of sequence, exponentially from a length on.

    Args:
        start: The number of new tokens after which logits are raised.
        factor: The base of the exponential.
        eos: The end-of-sequence ids, each below V.
        prompt_length: P.

    Returns:
        The processor.
    """
    tokens = np.array(eos, np.int64)

    def process(ids: Sequence[int], logits: np.ndarray) -> np.ndarray:
        excess = len(ids) - prompt_length - start
        if excess <= 0:
            return logits
        raised, old = logits.copy(), logits[tokens]
        growth = np.float64(factor) ** excess - 1
        added = np.clip(np.abs(old) * growth, None, np.finfo(np.float32).max / 2)
        raised[tokens] = np.where(np.isfinite(old), old + added, old)
        return raised

    return process
